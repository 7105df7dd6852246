"""From tokens to SAEs of a language model: cost and quality beside SAELens's, on the same tokens, to the same k.

    python benchmarks/language_training.py MODEL TEXT [--hooks model.layers.1 ...] [--tokens 400000] [--steps 390 3000]

Both read the same packed contexts, take the same steps of the same size with the same schedule, and save a BatchTopK
SAE of each hook point, on one thread; CPU time counts from after the imports to the saved SAE: forward passes, storage,
shuffling, training. saeflow writes all hook points in one pass; SAELens trains one SAE at a time, and its times are
added up. They take turns, round by round; the least round counts. Where there are more steps than the tokens fill, both
go over them again: SAELens by running the model anew, saeflow from its store. The SAEs of the last round are then
measured by saeflow's own code on contexts held out. Step sizes are each side's best of 1, 2, 4 and 8e-3 by explained
variance on the training text (at the first hook point, one pass).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from environments import create  # noqa: E402
from language_capture import SETTINGS  # noqa: E402

from saeflow.activations import ActivationStore  # noqa: E402
from saeflow.config.language import Hook  # noqa: E402
from saeflow.config.saes import SAEs  # noqa: E402
from saeflow.datasets import contexts, texts  # noqa: E402
from saeflow.datasets.inputs.texts import Texts, batches_of  # noqa: E402
from saeflow.models import language  # noqa: E402
from saeflow.models.capture import capture  # noqa: E402
from saeflow.models.networks.transformers import Transformers  # noqa: E402
from saeflow.sae import fitting, formats, language_metrics  # noqa: E402
from saeflow.sae.metrics import measure  # noqa: E402

CONTEXT, BATCH, WARMUP = 128, 1024, 0.07
COLUMNS = ("l0", "explained_variance", "ce_recovered_zero", "ce_recovered_mean", "dead_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--hooks", nargs="+", default=["model.layers.1", "model.layers.3", "model.layers.5"])
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--held-out", type=int, default=40_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[390, 3000])
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=8e-3, help="ours")
    parser.add_argument("--peer-learning-rate", type=float, default=8e-3, help="SAELens's")
    parser.add_argument("--normalize", default="none", help="SAELens's normalize_activations")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side:
        print(json.dumps(ours(json.loads(options.side))))
        return
    folder = Path(tempfile.mkdtemp(prefix="language-training-"))
    try:
        job = prepare(options, folder)
        for steps in options.steps:
            report(job | {"steps": steps}, options, folder)
    finally:
        shutil.rmtree(folder)


def prepare(options: argparse.Namespace, folder: Path) -> dict:
    """Pack the text; what both sides are told."""
    tokens = language.load_tokenizer(options.model, SETTINGS)
    documents = enumerate(texts.documents_of(texts.files_of(options.text), "<|endoftext|>", "text"))
    files = {}
    # The second part begins with the document after the last of the first.
    for part, n in (("train", options.tokens), ("held-out", options.held_out)):
        packed = contexts.pack(documents, tokens.encode, start=tokens.start, context_size=CONTEXT, n_tokens=n)
        files[part] = str(folder / f"{part}.parquet")
        contexts.write(Path(files[part]), packed, context_size=CONTEXT, start=tokens.start)
    rows = [row for batch in contexts_of(files["train"]) for row in batch.tokens]
    (folder / "tokens").mkdir()
    pd.DataFrame({"input_ids": rows}).to_parquet(folder / "tokens" / "train.parquet")
    model = language.load(options.model, SETTINGS, "cpu")
    d_in, *_ = Transformers(model, hooks_of(options.hooks)).widths().values()
    return {
        "model": str(options.model.resolve()),
        "files": files,
        "tokens": str(folder / "tokens"),
        "hooks": options.hooks,
        "context": CONTEXT,
        "start": tokens.start,
        "d_in": d_in,
        "d_sae": options.expansion * d_in,
        "k": options.k,
        "batch": BATCH,
        "lr": options.learning_rate,
        "normalize": options.normalize,
        "peer_lr": options.peer_learning_rate,
        "seed": 0,
    }


def contexts_of(file: str) -> Iterator[contexts.Contexts]:
    return contexts.TokenFile.open(Path(file)).batches(32)


def hooks_of(names: list[str]) -> dict[str, Hook]:
    return {name: Hook(module=name) for name in names}


def captured(job: dict, model: torch.nn.Module, folder: Path, part: str) -> dict[str, ActivationStore]:
    """The activations of a part of the text, a store for each hook point."""
    with ExitStack() as stack:
        stores = {
            (0, name): stack.enter_context(
                ActivationStore.create(folder / name, job["d_in"], "float32", source_columns=Texts.columns)
            )
            for name in job["hooks"]
        }
        capture(Transformers(model, hooks_of(job["hooks"])), batches_of(contexts_of(job["files"][part])), stores)
    return {name: ActivationStore.open(folder / name) for name in job["hooks"]}


def ours(job: dict) -> dict[str, float]:
    """Capture, train, save; CPU and wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    output = Path(job["output"])
    stores = captured(job, language.load(Path(job["model"]), SETTINGS, "cpu"), output / "stores", "train")
    saes = SAEs.model_validate(
        {
            "variants": {"batchtopk": {"architecture": "batchtopk", "d_sae": job["d_sae"], "k": job["k"]}},
            "training": {
                "steps": job["steps"],
                "batch_size": job["batch"],
                "learning_rate": job["lr"],
                "warmup_steps": job["warmup"],
                "decay_share": job["decay"] / job["steps"],
                "sparsity_warmup_steps": 0,
            },
        }
    )
    for name, store in stores.items():
        ((_, trained),) = fitting.fit([store], saes, seed=job["seed"])
        formats.save(trained.sae, output / name, {})
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def theirs(job: dict) -> dict[str, float]:
    """An SAE after the other; the sum of their times."""
    found = [
        told(
            [create("sae-lens"), ROOT / "benchmarks/peers/train_sae_lens.py"],
            job | {"hook": name, "lr": job["peer_lr"]},
        )
        for name in job["hooks"]
    ]
    return {kind: sum(times[kind] for times in found) for kind in found[0]}


def told(command: list, job: dict) -> dict[str, float]:
    """What a process prints last that is given a job."""
    done = subprocess.run([*map(str, command), json.dumps(job)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(job: dict, options: argparse.Namespace, folder: Path) -> None:
    """Let both sides take turns, then measure their SAEs."""
    job |= {"warmup": int(WARMUP * job["steps"]), "decay": job["steps"] // 5}
    sides = {
        "saeflow": lambda job: told([sys.executable, __file__, options.model, options.text, "--side"], job),
        "sae-lens": theirs,
    }
    outputs = {side: folder / f"{side}-{job['steps']}" for side in sides}
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for round_ in range(options.rounds):
        for side, run in sides.items():
            shutil.rmtree(outputs[side], ignore_errors=True)
            times[side].append(run(job | {"output": str(outputs[side])}))
            print(f"round {round_}, {side}: {times[side][-1]}", file=sys.stderr, flush=True)
    least = {side: {kind: min(t[kind] for t in found) for kind in found[0]} for side, found in times.items()}
    passes = job["steps"] * job["batch"] / options.tokens
    print(f"{job['d_in']} -> {job['d_sae']}, k {job['k']}, {job['steps']} steps, {passes:.1f} passes over the tokens")
    for side, seconds in least.items():
        ratio = ", ".join(
            f"{kind} {value:.1f} = {value / least['saeflow'][kind]:.2f} x" for kind, value in seconds.items()
        )
        print(f"{side:10} {ratio} of saeflow's")
    model = language.load(options.model, SETTINGS, "cpu")
    with tempfile.TemporaryDirectory(dir=folder) as held_out:
        for hook, store in captured(job, model, Path(held_out), "held-out").items():
            saes = {side: formats.load(path / hook, "cpu") for side, path in outputs.items()}
            quality(model, job, hook, store, saes)


def quality(model: torch.nn.Module, job: dict, hook: str, store: ActivationStore, saes: dict) -> None:
    """Print what each side's SAE of a hook point does on text held out."""
    measured = {side: measure(sae, store.batches(8192, shuffle=None, epochs=1)) for side, sae in saes.items()}
    replacements = language_metrics.ablations(measured["saeflow"].reconstruction.x.mean)
    replacements |= {side: language_metrics.reconstruction(sae) for side, sae in saes.items()}
    batches = contexts_of(job["files"]["held-out"])
    ce = language_metrics.cross_entropies(model, batches, hook, Hook(module=hook), replacements)
    for side in saes:
        metrics = measured[side].metrics() | language_metrics.recovered(ce, side)
        shown = " ".join(f"{name} {metrics[name]:.3f}" for name in COLUMNS)
        print(f"{hook:20} {side:10} {shown}")


if __name__ == "__main__":
    main()
