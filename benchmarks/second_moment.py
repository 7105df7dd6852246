"""Quality of SAEs trained with one second moment per latent against those with one per element, at the same L0.

    python benchmarks/second_moment.py [--seeds 3]

The SAEs of the default study and a gated one, on the last hidden layer of a network trained on scikit-learn's digits:
penalties are calibrated and thresholds adjusted to the target L0 for each of the two alike. Explained variance, L0 and
the share of latents that never fire are those of test images; mean and sample standard deviation over seeds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from saeflow import config  # noqa: E402
from saeflow.activations import ActivationStore  # noqa: E402
from saeflow.datasets import images  # noqa: E402
from saeflow.models.classifier_training import Member, train  # noqa: E402
from saeflow.sae.fitting import fit  # noqa: E402

HOOK_POINT = "last.pre"


def activations() -> tuple[torch.Tensor, torch.Tensor]:
    """Of training and of test images.  Shapes [n, d_in]."""
    data = images.build(config.Data(name="digits"), seed=0, folder=None)
    settings = config.Classifiers(architectures=["SimpleNN"])
    network = train("SimpleNN", data, [Member("full", tuple(range(10)), 0)], settings, seed=0).classifier
    splits = (torch.from_numpy(split.inputs()) for split in (data.train, data.test))
    with torch.no_grad():
        return tuple(network.run(x, [HOOK_POINT])[1][HOOK_POINT][0] for x in splits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    seeds = list(range(parser.parse_args().seeds))
    rows, test = activations()
    store = ActivationStore.from_array(rows)
    section = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["saes"]
    size = {key: section["variants"]["relu"][key] for key in ("d_sae", "target_l0")}
    section["variants"]["gated"] = {"architecture": "gated", **size}
    measured: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for second_moment in ("element", "latent"):
        section["training"]["second_moment"] = second_moment
        saes = config.SAEs.model_validate(section | {"seeds": seeds})
        for key, result in fit([store], saes, seed=0):
            z = result.sae.encode(test)
            error = (result.sae(test) - test).square().sum() / (test - test.mean(0)).square().sum()
            active = z > 0
            numbers = 1 - error, active.sum(1).float().mean(), (~active.any(0)).float().mean()
            measured.setdefault((key.variant, second_moment), []).append(tuple(map(float, numbers)))
    print(f"{'variant':12} {'one per':8} {'explained variance':>20} {'L0':>20} {'silent':>20}")
    for (variant, second_moment), values in sorted(measured.items()):
        columns = zip(np.mean(values, 0), np.std(values, 0, ddof=1), strict=True)
        numbers = " ".join(f"{mean:10.4f} +- {deviation:.4f}" for mean, deviation in columns)
        print(f"{variant:12} {second_moment:8} {numbers}", flush=True)


if __name__ == "__main__":
    main()
