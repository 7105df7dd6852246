"""Capture of a language model's activations against its bare forward pass over the same tokens.

    python benchmarks/language_capture.py <model folder> <text folder> [--hooks model.layers.1 ...] [--tokens 60000]

One process; the passes take turns in each round and the smallest of the rounds counts. Throughput is given in CPU time
of the process (the writer's threads included: what capture costs) and in wall time (what is left of it where writing
overlaps the forward pass). The bare pass computes everything up to the last hook point, or all of the model, logits
included, and keeps nothing; capture stops behind the last hook point.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from saeflow.activations import ActivationStore
from saeflow.config.language import Hook
from saeflow.datasets import contexts, texts
from saeflow.datasets.inputs.texts import Texts, batches_of
from saeflow.models import hook_points, language
from saeflow.models.capture import capture
from saeflow.models.networks.transformers import Transformers

SETTINGS = {"dtype": "float32", "attention": "sdpa", "device_map": None, "trust_remote_code": False}
NOTHING = torch.zeros(0, dtype=torch.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--hooks", nargs="+", default=["model.layers.1", "model.layers.3", "model.layers.5"])
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = language.load(options.model, SETTINGS | {"dtype": options.dtype}, options.device)
    tokens = language.load_tokenizer(options.model, SETTINGS)
    documents = enumerate(texts.documents_of(texts.files_of(options.text), "<|endoftext|>", "text"))
    packed = contexts.pack(
        documents, tokens.encode, start=tokens.start, context_size=options.context, n_tokens=options.tokens
    )
    folder = Path(tempfile.mkdtemp(prefix="capture-"))
    contexts.write(folder / "tokens.parquet", packed, context_size=options.context, start=tokens.start)
    file = contexts.TokenFile.open(folder / "tokens.parquet")
    hooks = {name: Hook(module=name) for name in options.hooks}
    network = Transformers(model, hooks)
    widths = network.widths()

    def bare() -> None:
        recorder = hook_points.Recorder(model, hooks)
        for batch in file.batches(options.batch):
            recorder(torch.from_numpy(batch.tokens).to(options.device), NOTHING)

    @torch.no_grad()
    def whole() -> None:
        for batch in file.batches(options.batch):
            model(torch.from_numpy(batch.tokens).to(options.device), use_cache=False)

    def stored() -> None:
        stores = {
            (0, name): ActivationStore.create(
                folder / name, widths[name], options.dtype, source_columns=Texts.columns, if_exists="replace"
            )
            for name in hooks
        }
        capture(network, batches_of(file.batches(options.batch)), stores)
        for store in stores.values():
            store.close()

    n = len(file) * file.context_size
    best = rounds({"bare, to the last hook point": bare, "bare, whole model": whole, "capture": stored}, options)
    print(f"{n} tokens, {len(hooks)} hook points of {list(widths.values())}, {options.device}, {options.dtype}")
    for kind, index in (("CPU", 0), ("wall", 1)):
        seconds = {name: times[index] for name, times in best.items()}
        for name, value in seconds.items():
            share = 100 * value / seconds["capture"]
            print(f"{kind:5} {name:30} {n / value:10.0f} tokens/s   capture at {share:6.1f} % of it")
    shutil.rmtree(folder)


def rounds(passes: dict[str, Callable[[], None]], options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Smallest CPU and wall time of each pass."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for _ in range(options.rounds):
        for name, run in passes.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if options.device != "cpu":
                torch.cuda.synchronize()
            found[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: tuple(map(min, zip(*times, strict=True))) for name, times in found.items()}


if __name__ == "__main__":
    main()
