"""Activation stores side by side: ours, npy memmap, zarr's own indexing, safetensors files, Hugging Face datasets.

    python benchmarks/activation_store.py [--rows 262144] [--rounds 5] [--directory <folder with 2 GB free>]

One process, one thread of torch, files in the page cache. Every figure is CPU time of the process (our writer's
background thread included), the contenders take turns in each round, and the smallest of the rounds counts: what other
programs on the machine do falls out. Every contender does the same: takes 4096 rows at a time, gives 4096 rows at a
time as a float32 tensor. GB are those on disk.
"""

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import zarr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from saeflow.activations import ActivationStore
from saeflow.reproduce import child_seed, manifest

BATCH = 4096
D = 512
CHUNK_ROWS = 16384
D_SAE = 4096
SEQUENCE = 128


class Contender(ABC):
    """One way to keep activations [n, 512] float16."""

    name: str

    def __init__(self, directory: Path, n_rows: int) -> None:
        self.directory = directory
        self.n_rows = n_rows

    @abstractmethod
    def write(self, x: Tensor) -> None:
        """Store all rows."""

    @abstractmethod
    def read(self, order: np.ndarray) -> Iterator[Tensor]:
        """Batches of consecutive rows, batch by batch in a given order; shuffled inside if not the natural one."""

    @abstractmethod
    def pick(self, rows: np.ndarray) -> Tensor:
        """Rows by number."""


def permuted(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows))]


class Ours(Contender):
    name = "saeflow"

    def write(self, x: Tensor) -> None:
        with ActivationStore.create(self.directory, D, "float16", CHUNK_ROWS, if_exists="replace") as writer:
            for rows in x.split(BATCH):
                writer.append(rows)
        self.store = ActivationStore.open(self.directory, check_digests=False)

    def read(self, order: np.ndarray) -> Iterator[Tensor]:
        in_order = bool((np.diff(order) == 1).all())
        return self.store.batches(BATCH, seed=int(order[0]), shuffle=None if in_order else "chunks")

    def pick(self, rows: np.ndarray) -> Tensor:
        return self.store.rows(rows)


class Memmap(Contender):
    name = "npy memmap"

    def write(self, x: Tensor) -> None:
        path = self.directory / "x.npy"
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=tuple(x.shape))
        for start in range(0, len(x), BATCH):
            file[start : start + BATCH] = x[start : start + BATCH].numpy()
        file.flush()
        del file
        self.rows = np.load(path, mmap_mode="r")

    def read(self, order: np.ndarray) -> Iterator[Tensor]:
        in_order = bool((np.diff(order) == 1).all())
        for batch in order:
            rows = self.rows[batch * BATCH : (batch + 1) * BATCH]
            rows = np.array(rows) if in_order else rows[np.random.permutation(BATCH)]
            yield torch.from_numpy(rows).float()

    def pick(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.rows[rows]).float()


class Zarr(Contender):
    name = "zarr indexing"

    def write(self, x: Tensor) -> None:
        self.rows = zarr.create_array(
            self.directory / "x",
            shape=tuple(x.shape),
            chunks=(CHUNK_ROWS, D),
            dtype="float16",
            compressors=None,
            overwrite=True,
        )
        for start in range(0, len(x), CHUNK_ROWS):
            self.rows[start : start + CHUNK_ROWS] = x[start : start + CHUNK_ROWS].numpy()

    def read(self, order: np.ndarray) -> Iterator[Tensor]:
        in_order = bool((np.diff(order) == 1).all())
        for batch in order:
            rows = torch.from_numpy(self.rows[batch * BATCH : (batch + 1) * BATCH])
            yield (rows if in_order else permuted(rows)).float()

    def pick(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.rows.oindex[rows]).float()


class Safetensors(Contender):
    name = "safetensors"
    n_files = 8

    def write(self, x: Tensor) -> None:
        self.per_file = len(x) // self.n_files
        for i, rows in enumerate(x.split(self.per_file)):
            safetensors.torch.save_file({"x": rows}, self.directory / f"{i}.safetensors")

    def read(self, order: np.ndarray) -> Iterator[Tensor]:
        in_order = bool((np.diff(order) == 1).all())
        files = [safetensors.safe_open(self.directory / f"{i}.safetensors", "pt") for i in range(self.n_files)]
        for batch in order:
            i, start = divmod(int(batch) * BATCH, self.per_file)
            rows = files[i].get_slice("x")[start : start + BATCH]
            yield (rows if in_order else permuted(rows)).float()

    def pick(self, rows: np.ndarray) -> Tensor:
        out = torch.empty(len(rows), D)
        for i in range(self.n_files):
            here = np.flatnonzero(rows // self.per_file == i)
            with safetensors.safe_open(self.directory / f"{i}.safetensors", "pt") as file:
                out[here] = file.get_tensor("x")[rows[here] % self.per_file].float()
        return out


class Arrow(Contender):
    """As SAELens caches activations: Arrow rows of 128 positions x d."""

    name = "datasets (Arrow)"

    def write(self, x: Tensor) -> None:
        import datasets

        datasets.disable_progress_bars()
        features = datasets.Features({"x": datasets.Array2D((SEQUENCE, D), "float16")})
        path = self.directory / "x.arrow"
        writer = datasets.arrow_writer.ArrowWriter(path=str(path), features=features)
        for rows in x.split(BATCH):
            writer.write_batch({"x": rows.view(-1, SEQUENCE, D).numpy()})
        writer.finalize()
        self.data = datasets.Dataset.from_file(str(path)).with_format("torch")

    def read(self, order: np.ndarray) -> Iterator[Tensor]:
        in_order = bool((np.diff(order) == 1).all())
        data = self.data if in_order else self.data.shuffle(seed=int(order[0]))
        for batch in data.iter(BATCH // SEQUENCE):
            rows = batch["x"].reshape(-1, D)
            yield (rows if in_order else permuted(rows)).float()

    def pick(self, rows: np.ndarray) -> Tensor:
        raise NotImplementedError("an Arrow row is a sequence, not a vector")


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def exhaust(batches: Iterator[Tensor]) -> None:
    for batch in batches:
        assert batch.shape == (BATCH, D)
        assert batch.dtype == torch.float32


def measure(contenders: list[Contender], x: Tensor, rounds: int) -> dict[tuple[str, str], float]:
    """CPU seconds by contender and task, the smallest of all rounds."""
    best: dict[tuple[str, str], float] = {}
    n_batches = len(x) // BATCH
    for round_ in range(rounds):
        rng = np.random.default_rng(child_seed(0, "round", round_))
        order, rows = rng.permutation(n_batches), rng.integers(len(x), size=(8, BATCH))
        for task in ("write", "in order", "shuffled", "random"):
            for one in contenders:
                if task == "random" and isinstance(one, Arrow):
                    continue
                work = {
                    "write": lambda one=one: one.write(x),
                    "in order": lambda one=one: exhaust(one.read(np.arange(n_batches))),
                    "shuffled": lambda one=one: exhaust(one.read(order)),
                    "random": lambda one=one: [one.pick(r) for r in rows],
                }[task]
                seconds = cpu_seconds(work) / (len(rows) if task == "random" else 1)
                best[one.name, task] = min(seconds, best.get((one.name, task), np.inf))
    return best


def print_table(contenders: list[Contender], best: dict[tuple[str, str], float], gigabytes: float) -> None:
    """Speed of each, and in brackets its CPU time relative to ours."""
    print(f"{'':18} {'write':>16} {'in order':>16} {'shuffled':>16} {'random 4096 rows':>18}")
    print(f"{'':18} {'GB / CPU s':>16} {'GB / CPU s':>16} {'GB / CPU s':>16} {'CPU ms':>18}")
    for one in contenders:
        cells = []
        for task in ("write", "in order", "shuffled", "random"):
            seconds = best.get((one.name, task))
            if seconds is None:
                cells.append("-")
                continue
            ratio = seconds / best["saeflow", task]
            value = f"{seconds * 1e3:.2f}" if task == "random" else f"{gigabytes / seconds:.2f}"
            cells.append(f"{value} ({ratio:.2f}x)")
        print(f"{one.name:18} {cells[0]:>16} {cells[1]:>16} {cells[2]:>16} {cells[3]:>18}")
    print("(in brackets: CPU time relative to saeflow; ours digests what it writes, and mixes rows of all chunks)\n")


def digest_seconds(path: Path, rounds: int) -> float:
    return min(cpu_seconds(ActivationStore.open(path).verify) for _ in range(rounds))


def encoder_seconds(rounds: int) -> float:
    """The one matrix product without which no training step can be: x [4096, 512] times W_enc [512, 4096]."""
    x, w = torch.randn(BATCH, D), torch.randn(D, D_SAE)
    return min(cpu_seconds(lambda: x @ w) for _ in range(max(5, rounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=262144, help="activation vectors of width 512 (default 262144)")
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for figures to rely on (default 5)")
    parser.add_argument("--directory", type=Path, help="where the files go (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.rows % (8 * CHUNK_ROWS):
        parser.error(f"--rows {arguments.rows}: must be a multiple of {8 * CHUNK_ROWS}")
    torch.set_num_threads(1)
    kinds = [Ours, Memmap, Zarr, Safetensors]
    if importlib.util.find_spec("datasets"):
        kinds.append(Arrow)
    else:
        print("Hugging Face datasets is not installed: skipped\n")
    root = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        x = torch.randn(arguments.rows, D, generator=torch.Generator().manual_seed(0)).half()
        gigabytes = x.nbytes / 1e9
        contenders = []
        for kind in kinds:
            (root / kind.__name__).mkdir()
            contenders.append(kind(root / kind.__name__, arguments.rows))
        print(
            f"{arguments.rows} x {D} float16, {gigabytes:.2f} GB, chunks of {CHUNK_ROWS} rows, torch {torch.__version__}\n"
        )
        best = measure(contenders, x, arguments.rounds)
        print_table(contenders, best, gigabytes)

        ours = contenders[0]
        first = manifest(ours.directory, [ours.directory])
        same = []
        for _ in range(3):
            ours.write(x)
            same.append(manifest(ours.directory, [ours.directory]) == first)
        n_batches = arguments.rows // BATCH
        batch, encoder = best["saeflow", "shuffled"] / n_batches, encoder_seconds(arguments.rounds)
        digests = digest_seconds(ours.directory, arguments.rounds)
        shuffled = gigabytes / best["saeflow", "shuffled"]
        quality = ours.store.batches(BATCH).quality
        checks = [
            (
                "random batch of 4096 x 512",
                f"{best['saeflow', 'random'] * 1e3:.2f} ms",
                "<= 5 ms",
                best["saeflow", "random"] <= 5e-3,
            ),
            ("shuffled batches", f"{shuffled:.2f} GB / CPU s", ">= 3 GB / CPU s", shuffled >= 3),
            (
                f"loader / encoder product {D} -> {D_SAE}",
                f"{batch / encoder:.2%} of {encoder * 1e3:.0f} ms",
                "<= 2 % of a step",
                batch <= 0.02 * encoder,
            ),
            ("identical bytes on rewrite", f"{sum(same)} of {len(same)}", "all", all(same)),
        ]
        for what, value, target, met in checks:
            print(f"{what:38} {value:>22}   target {target:16} {'met' if met else 'NOT MET'}")
        share = (batch + digests / n_batches) / encoder
        print(
            f"\ndigest check, once per process: {gigabytes / digests:.2f} GB / CPU s; loader with it in an epoch: {share:.2%}"
        )
        print(
            f"mixing: {quality.n_buffers} buffers an epoch, each of {quality.min_blocks} or more blocks of "
            f"{quality.block_rows} rows; worst-case variance of a batch mean {quality.variance_ratio(BATCH):.1f} times "
            "that of independent rows"
        )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
