"""Quality of SAEs trained with one second moment per latent against those with one per element, at the same L0.

    python benchmarks/second_moment.py [--seeds 3]
    python benchmarks/second_moment.py --model MODEL --text TEXT [--hook model.layers.3] [--d-sae 8192 24576] [--k 32]

The SAEs of the default study and a gated one, on the last hidden layer of a network trained on scikit-learn's digits:
penalties are calibrated and thresholds adjusted to the target L0 for each of the two alike. Or TopK and BatchTopK SAEs
of a language model, so large that the optimizer's memory matters. Explained variance, L0 and the share of latents that
never fire are those of test images, or of text held out; mean and sample standard deviation over seeds.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from language_capture import SETTINGS  # noqa: E402
from language_training import BATCH, captured, prepare  # noqa: E402

from saeflow.activations import ActivationStore  # noqa: E402
from saeflow.config.images import Classifiers, Data  # noqa: E402
from saeflow.config.saes import SAEs  # noqa: E402
from saeflow.datasets import images  # noqa: E402
from saeflow.models import language  # noqa: E402
from saeflow.models.classifier_training import Member, train  # noqa: E402
from saeflow.sae.architectures import SparseAutoencoder  # noqa: E402
from saeflow.sae.fitting import fit  # noqa: E402

HOOK_POINT = "last.pre"


def activations() -> tuple[torch.Tensor, torch.Tensor]:
    """Of training and of test images.  Shapes [n, d_in]."""
    data = images.build(Data(name="digits"), seed=0, folder=None)
    settings = Classifiers(architectures=["SimpleNN"])
    network = train("SimpleNN", data, [Member("full", tuple(range(10)), 0)], settings, seed=0).classifier
    splits = (torch.from_numpy(split.inputs()) for split in (data.train, data.test))
    with torch.no_grad():
        return tuple(network.values(x, [HOOK_POINT])[HOOK_POINT][0] for x in splits)


def of_images(seeds: list[int]) -> tuple[ActivationStore, torch.Tensor, dict[str, Any]]:
    """Activations to train on and to measure on, and the section that says which SAEs."""
    rows, test = activations()
    section = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["saes"]
    size = {key: section["variants"]["relu"][key] for key in ("d_sae", "target_l0")}
    section["variants"]["gated"] = {"architecture": "gated", **size}
    return ActivationStore.from_array(rows), test, section | {"seeds": seeds}


def of_text(options: argparse.Namespace, folder: Path) -> tuple[ActivationStore, torch.Tensor, dict[str, Any]]:
    """The same of a language model at one hook point."""
    # What the other side of that benchmark would be told is not asked for here.
    others = {"expansion": 1, "normalize": "none", "peer_learning_rate": options.learning_rate}
    job = prepare(argparse.Namespace(**vars(options), hooks=[options.hook], **others), folder)
    model = language.load(options.model, SETTINGS, "cpu")
    train_on, test_on = (captured(job, model, folder / part, part)[options.hook] for part in ("train", "held-out"))
    variants = {
        f"{kind}_{d_sae}": {"architecture": kind, "d_sae": d_sae, "k": options.k}
        for d_sae in options.d_sae
        for kind in ("topk", "batchtopk")
    }
    training = {"steps": options.steps, "batch_size": BATCH, "learning_rate": options.learning_rate}
    warmups = {"warmup_steps": options.steps // 20, "sparsity_warmup_steps": 0}
    test = torch.cat(list(test_on.batches(BATCH, shuffle=None)))
    section = {"variants": variants, "seeds": list(range(options.seeds)), "training": training | warmups}
    return train_on, test, section


def results(store: ActivationStore, test: torch.Tensor, section: dict[str, Any]) -> Iterator[tuple[str, str, list]]:
    """Variant, what one moment is for, and explained variance, L0 and silent share of each seed."""
    for second_moment in ("element", "latent"):
        section["training"]["second_moment"] = second_moment
        measured: dict[str, list[tuple[float, ...]]] = {}
        for key, result in fit([store], SAEs.model_validate(section), seed=0):
            measured.setdefault(key.variant, []).append(quality(result.sae, test))
        yield from ((variant, second_moment, values) for variant, values in measured.items())


def quality(sae: SparseAutoencoder, test: torch.Tensor) -> tuple[float, float, float]:
    """Explained variance, L0 and share of latents that never fire."""
    error, active, fired = 0.0, 0.0, torch.zeros(sae.d_sae, dtype=torch.bool)
    for rows in test.split(BATCH):
        z = sae.encode(rows)
        error += float((sae.decode(z) - rows).double().square().sum())
        active += float((z > 0).sum())
        fired |= (z > 0).any(0)
    variance = float((test - test.mean(0)).double().square().sum())
    return 1 - error / variance, active / len(test), float((~fired).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--hook", default="model.layers.3")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--held-out", type=int, default=40_000)
    parser.add_argument("--d-sae", type=int, nargs="+", default=[8192, 24_576])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=780)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="second-moment-") as folder:
        given = of_text(options, Path(folder)) if options.model else of_images(list(range(options.seeds)))
        print(f"{'variant':16} {'one per':8} {'explained variance':>20} {'L0':>20} {'silent':>20}")
        for variant, second_moment, values in results(*given):
            spread = np.std(values, 0, ddof=1) if len(values) > 1 else np.full(3, np.nan)
            columns = zip(np.mean(values, 0), spread, strict=True)
            numbers = " ".join(f"{mean:10.4f} +- {deviation:.4f}" for mean, deviation in columns)
            print(f"{variant:16} {second_moment:8} {numbers}", flush=True)


if __name__ == "__main__":
    main()
