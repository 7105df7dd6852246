"""Cost per token and memory of a language model's SAE against the number of tokens: are they flat?

    python benchmarks/language_tokens.py MODEL TEXT [--tokens 200000 500000 ...] [--figure docs/tokens.svg]

For each number of tokens, a process of its own captures one hook point into a store on disk (float16), then trains a
BatchTopK SAE on one pass over it, on one thread. A text with fewer tokens is read again from its start. CPU time counts
the whole process from after the imports, packing of the text left out; memory is the most that is not backed by a file,
looked at every 20 ms: pages of a memory-mapped store are the system's to take back.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from language_capture import SETTINGS  # noqa: E402

from saeflow.activations import ActivationStore  # noqa: E402
from saeflow.config.language import Hook  # noqa: E402
from saeflow.config.saes import SAEs  # noqa: E402
from saeflow.datasets import contexts, texts  # noqa: E402
from saeflow.datasets.inputs.texts import Texts, batches_of  # noqa: E402
from saeflow.models import language  # noqa: E402
from saeflow.models.capture import capture  # noqa: E402
from saeflow.models.networks.transformers import Transformers  # noqa: E402
from saeflow.publish import style  # noqa: E402
from saeflow.sae import fitting  # noqa: E402

CONTEXT, BATCH, EXPANSION, K = 128, 1024, 8, 32
COSTS = {"capture_s": "capture", "training_s": "training"}


class Anonymous(threading.Thread):
    """Most memory of this process that no file backs, in 1e6 bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes, self._done = 0.0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            now = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.megabytes = max(self.megabytes, now * 1.024e-3)

    def stop(self) -> float:
        self._done.set()
        self.join()
        return self.megabytes


def measure(options: argparse.Namespace, n_tokens: int, folder: Path) -> dict[str, float]:
    """Seconds and memory of one size."""
    hooks = {options.hook: Hook(module=options.hook)}
    tokens = language.load_tokenizer(options.model, SETTINGS)
    files = texts.files_of(options.text)
    again = itertools.chain.from_iterable(texts.documents_of(files, "<|endoftext|>", "text") for _ in itertools.count())
    packed = contexts.pack(enumerate(again), tokens.encode, start=tokens.start, context_size=CONTEXT, n_tokens=n_tokens)
    contexts.write(folder / "tokens.parquet", packed, context_size=CONTEXT, start=tokens.start)
    memory, started = Anonymous(), time.process_time()
    memory.start()
    model = language.load(options.model, SETTINGS, "cpu")
    network = Transformers(model, hooks)
    (d_in,) = network.widths().values()
    with ActivationStore.create(folder / "store", d_in, "float16", source_columns=Texts.columns) as writer:
        batches = batches_of(contexts.TokenFile.open(folder / "tokens.parquet").batches(32))
        capture(network, batches, {(0, options.hook): writer})
    captured = time.process_time()
    store = ActivationStore.open(folder / "store")
    saes = SAEs.model_validate(
        {
            "variants": {"batchtopk": {"architecture": "batchtopk", "d_sae": EXPANSION * d_in, "k": K}},
            "training": {
                "steps": len(store) // BATCH,
                "batch_size": BATCH,
                "learning_rate": 8e-3,
                "warmup_steps": 10,
                "sparsity_warmup_steps": 0,
                "precision": options.precision,
            },
        }
    )
    ((_, trained),) = fitting.fit([store], saes, seed=0)
    ended = time.process_time()
    return {
        "tokens": len(store),
        "capture_s": captured - started,
        "training_s": ended - captured,
        "memory_mb": memory.stop(),
        "explained_variance": trained.curves["explained_variance"][-1],
    }


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Cost per token on the left, memory on the right, both from zero."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(style.PAGE, 2.4))
    tokens = [row["tokens"] / 1e6 for row in rows]
    curves = {label: [1e6 * row[key] / row["tokens"] for row in rows] for key, label in COSTS.items()}
    curves["both"] = [sum(values) for values in zip(*curves.values(), strict=True)]
    for i, (label, values) in enumerate(curves.items()):
        left.plot(tokens, values, marker=style.marker(i), color=style.colour(i), label=label)
    left.set(ylabel="CPU time per token (µs)")
    left.legend()
    right.plot(tokens, [row["memory_mb"] for row in rows], marker=style.marker(0), color=style.colour(0))
    right.set(ylabel="peak memory (MB)")
    for axes in (left, right):
        axes.set(xlabel="tokens (millions)", ylim=(0, 1.1 * axes.dataLim.ymax), xlim=(0, 1.05 * axes.dataLim.xmax))
    style.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--hook", default="model.layers.1")
    parser.add_argument("--tokens", type=int, nargs="+", default=[200_000, 500_000, 1_000_000, 2_000_000, 4_000_000])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the training")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure(options, options.tokens[0], options.one)))
        return
    rows = []
    for n in options.tokens:
        folder = Path(tempfile.mkdtemp(prefix="language-tokens-"))
        try:
            command = [sys.executable, __file__, options.model, options.text, "--hook", options.hook]
            command += ["--precision", options.precision, "--tokens", n, "--one", folder]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        finally:
            shutil.rmtree(folder)
        if done.returncode:
            sys.exit(f"{n} tokens failed:\n{done.stderr[-3000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        costs = ", ".join(f"{label} {1e6 * row[key] / row['tokens']:.1f}" for key, label in COSTS.items())
        print(
            f"{row['tokens']:>9,} tokens: CPU µs per token: {costs}; peak memory {row['memory_mb']:.0f} MB; "
            f"explained variance {row['explained_variance']:.3f}",
            flush=True,
        )
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
