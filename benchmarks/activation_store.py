"""Activation stores side by side: ours, npy memmap, zarr's own indexing, safetensors files, Hugging Face datasets.

    python benchmarks/activation_store.py [--rows 262144] [--rounds 5] [--directory <folder with 2 GB free>]

One process, one thread of torch, files in the page cache. Every figure is CPU time of the process (our writer's
background thread included), the contenders take turns in each round, and the smallest of the rounds counts: what other
programs on the machine do falls out, but for what they take from the memory's bandwidth. Every contender does the same:
takes 4096 rows at a time, gives 4096 rows at a time. GB are those on disk. A shuffled pass of ours mixes rows of blocks
from the whole store; of the others, rows within one block of 4096, the blocks in random order.
"""

import argparse
import importlib.util
import itertools
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
TASKS = {
    "write": "GB / CPU s",
    "in order": "GB / CPU s",
    "shuffled": "GB / CPU s",
    "shuffled float32": "GB / CPU s",
    "random": "CPU ms / 4096 rows",
}


class Contender(ABC):
    """One way to keep activations [n, 512] float16."""

    name: str

    def __init__(self, root: Path, x: Tensor) -> None:
        self.directory, self.scratch = root / self.name, root / f"{self.name} again"
        self.directory.mkdir()
        self.scratch.mkdir()
        self.n_rows = len(x)
        self.write(x, self.directory)
        self.open()

    @abstractmethod
    def write(self, x: Tensor, directory: Path) -> None:
        """Store all rows."""

    @abstractmethod
    def open(self) -> None:
        """Get ready to read."""

    @abstractmethod
    def read(self, order: np.ndarray | None, dtype: torch.dtype) -> Iterator[Tensor]:
        """All rows in batches: as they were written, or shuffled, blocks of 4096 in the order given."""

    @abstractmethod
    def pick(self, rows: np.ndarray) -> Tensor:
        """Rows by number."""


def permuted(rows: Tensor) -> Tensor:
    return rows.index_select(0, torch.randperm(len(rows)))


class Ours(Contender):
    name = "saeflow"

    def write(self, x: Tensor, directory: Path) -> None:
        with ActivationStore.create(directory, D, "float16", CHUNK_ROWS, if_exists="replace") as writer:
            for rows in x.split(BATCH):
                writer.append(rows)

    def open(self) -> None:
        self.store = ActivationStore.open(self.directory, check_digests=False)
        # One stream per number type for all rounds, as a trainer has.
        self.streams = {
            dtype: self.store.batches(BATCH, seed=0, steps=1 << 40, dtype=dtype)
            for dtype in (torch.float16, torch.float32)
        }

    def read(self, order: np.ndarray | None, dtype: torch.dtype) -> Iterator[Tensor]:
        if order is None:
            return self.store.batches(BATCH, shuffle=None, dtype=dtype)
        return itertools.islice(self.streams[dtype], len(order))

    def pick(self, rows: np.ndarray) -> Tensor:
        return self.store.rows(rows)


class Memmap(Contender):
    name = "npy memmap"

    def write(self, x: Tensor, directory: Path) -> None:
        file = np.lib.format.open_memmap(directory / "x.npy", mode="w+", dtype=np.float16, shape=tuple(x.shape))
        for start in range(0, len(x), BATCH):
            file[start : start + BATCH] = x[start : start + BATCH].numpy()
        file.flush()

    def open(self) -> None:
        self.rows = np.load(self.directory / "x.npy", mmap_mode="r")

    def read(self, order: np.ndarray | None, dtype: torch.dtype) -> Iterator[Tensor]:
        for batch in range(self.n_rows // BATCH) if order is None else order:
            rows = self.rows[batch * BATCH : (batch + 1) * BATCH]
            rows = np.array(rows) if order is None else rows[np.random.permutation(BATCH)]
            yield torch.from_numpy(rows).to(dtype)

    def pick(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.rows[rows]).float()


class Zarr(Contender):
    name = "zarr indexing"

    def write(self, x: Tensor, directory: Path) -> None:
        rows = zarr.create_array(
            directory / "x",
            shape=tuple(x.shape),
            chunks=(CHUNK_ROWS, D),
            dtype="float16",
            compressors=None,
            overwrite=True,
        )
        for start in range(0, len(x), CHUNK_ROWS):
            rows[start : start + CHUNK_ROWS] = x[start : start + CHUNK_ROWS].numpy()

    def open(self) -> None:
        self.rows = zarr.open_array(self.directory / "x", mode="r")

    def read(self, order: np.ndarray | None, dtype: torch.dtype) -> Iterator[Tensor]:
        for batch in range(self.n_rows // BATCH) if order is None else order:
            rows = torch.from_numpy(self.rows[batch * BATCH : (batch + 1) * BATCH])
            yield (rows if order is None else permuted(rows)).to(dtype)

    def pick(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.rows.oindex[rows]).float()


class Safetensors(Contender):
    name = "safetensors"
    n_files = 8

    def write(self, x: Tensor, directory: Path) -> None:
        for i, rows in enumerate(x.chunk(self.n_files)):
            safetensors.torch.save_file({"x": rows}, directory / f"{i}.safetensors")

    def open(self) -> None:
        self.per_file = self.n_rows // self.n_files

    def read(self, order: np.ndarray | None, dtype: torch.dtype) -> Iterator[Tensor]:
        files = [safetensors.safe_open(self.directory / f"{i}.safetensors", "pt") for i in range(self.n_files)]
        for batch in range(self.n_rows // BATCH) if order is None else order:
            i, start = divmod(int(batch) * BATCH, self.per_file)
            rows = files[i].get_slice("x")[start : start + BATCH]
            yield (rows if order is None else permuted(rows)).to(dtype)

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

    def write(self, x: Tensor, directory: Path) -> None:
        import datasets

        datasets.disable_progress_bars()
        features = datasets.Features({"x": datasets.Array2D((SEQUENCE, D), "float16")})
        writer = datasets.arrow_writer.ArrowWriter(path=str(directory / "x.arrow"), features=features)
        for rows in x.split(BATCH):
            writer.write_batch({"x": rows.view(-1, SEQUENCE, D).numpy()})
        writer.finalize()

    def open(self) -> None:
        import datasets

        self.data = datasets.Dataset.from_file(str(self.directory / "x.arrow")).with_format("torch")

    def read(self, order: np.ndarray | None, dtype: torch.dtype) -> Iterator[Tensor]:
        data = self.data if order is None else self.data.shuffle(seed=int(order[0]))
        for batch in data.iter(BATCH // SEQUENCE):
            rows = batch["x"].reshape(-1, D)
            yield (rows if order is None else permuted(rows)).to(dtype)

    def pick(self, rows: np.ndarray) -> Tensor:
        raise TypeError("an Arrow row is a sequence, not a vector")


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def exhaust(batches: Iterator[Tensor]) -> None:
    for batch in batches:
        assert batch.shape == (BATCH, D)


def tasks(
    one: Contender, x: Tensor, order: np.ndarray, rows: np.ndarray
) -> dict[str, tuple[Callable[[], object], int]]:
    """Work by name, and how many times it does what is measured."""

    def shuffled(dtype: torch.dtype) -> None:
        exhaust(one.read(order, dtype))
        exhaust(one.read(order[::-1], dtype))

    def pick_all() -> None:
        for some in rows:
            one.pick(some)

    return {
        "write": (lambda: one.write(x, one.scratch), 1),
        "in order": (lambda: exhaust(one.read(None, torch.float32)), 1),
        "shuffled": (lambda: shuffled(torch.float16), 2),
        "shuffled float32": (lambda: shuffled(torch.float32), 2),
        "random": (pick_all, len(rows)),
    }


def measure(contenders: list[Contender], x: Tensor, rounds: int) -> dict[tuple[str, str], float]:
    """CPU seconds by contender and task, the smallest of all rounds."""
    best: dict[tuple[str, str], float] = {}
    for round_ in range(rounds):
        rng = np.random.default_rng(child_seed(0, "round", round_))
        order, rows = rng.permutation(len(x) // BATCH), rng.integers(len(x), size=(16, BATCH))
        for task in TASKS:
            for one in contenders:
                if task == "random" and isinstance(one, Arrow):
                    continue
                work, times = tasks(one, x, order, rows)[task]
                seconds = cpu_seconds(work) / times
                best[one.name, task] = min(seconds, best.get((one.name, task), np.inf))
    return best


def print_table(contenders: list[Contender], best: dict[tuple[str, str], float], gigabytes: float) -> None:
    """Speed of each, and in brackets its CPU time relative to ours."""
    print(f"{'':18}" + "".join(f"{task:>19}" for task in TASKS))
    print(f"{'':18}" + "".join(f"{unit:>19}" for unit in TASKS.values()))
    for one in contenders:
        line = f"{one.name:18}"
        for task in TASKS:
            seconds = best.get((one.name, task))
            if seconds is None:
                line += f"{'-':>19}"
                continue
            value = seconds * 1e3 if task == "random" else gigabytes / seconds
            line += f"{f'{value:.2f} ({seconds / best[Ours.name, task]:.2f}x)':>19}"
        print(line)
    print("In brackets: CPU time relative to ours. Ours digests what it writes.\n")


def digest_seconds(path: Path, rounds: int) -> float:
    return min(cpu_seconds(ActivationStore.open(path).verify) for _ in range(rounds))


def encoder_seconds(rounds: int) -> float:
    """The one matrix product without which no training step can be: x [4096, 512] times W_enc [512, 4096]."""
    x, w = torch.randn(BATCH, D), torch.randn(D, D_SAE)
    return min(cpu_seconds(lambda: x @ w) for _ in range(max(5, rounds)))


def print_checks(ours: Ours, x: Tensor, best: dict[tuple[str, str], float], rounds: int) -> None:
    """What the store promises, beside what was measured."""
    first = manifest(ours.directory, [ours.directory])
    same = []
    for _ in range(3):
        ours.write(x, ours.scratch)
        same.append(manifest(ours.scratch, [ours.scratch]) == first)
    n_batches, gigabytes = len(x) // BATCH, x.nbytes / 1e9
    random, shuffled, loader = (best[ours.name, task] for task in ("random", "shuffled", "shuffled float32"))
    loader /= n_batches
    encoder, digests = encoder_seconds(rounds), digest_seconds(ours.directory, rounds)
    of_step = f"{loader / encoder:.2%} of {encoder * 1e3:.0f} ms"
    for what, value, target, met in (
        ("random batch of 4096 x 512", f"{random * 1e3:.2f} ms", "<= 5 ms", random <= 5e-3),
        ("shuffled, as stored", f"{gigabytes / shuffled:.2f} GB / CPU s", ">= 3 GB / CPU s", gigabytes / shuffled >= 3),
        (f"float32 batch / encoder {D} -> {D_SAE}", of_step, "<= 2 % of a step", loader <= 0.02 * encoder),
        ("rewrites with identical bytes", f"{sum(same)} of {len(same)}", "all", all(same)),
    ):
        print(f"{what:34} {value:>20}   target {target:17} {'met' if met else 'NOT MET'}")
    share = (loader + digests / n_batches) / encoder
    quality = ours.store.batches(BATCH).quality
    print("The encoder's matrix product alone bounds a training step from below.\n")
    print(
        f"digest check, once per process: {gigabytes / digests:.2f} GB / CPU s; {share:.2%} with it, in its one epoch"
    )
    print(
        f"mixing: {quality.n_buffers} buffers an epoch, each of {quality.min_blocks} or more blocks of "
        f"{quality.block_rows} rows; at worst, the mean of a batch varies {quality.variance_ratio(BATCH):.1f} times as "
        "much as that of independent rows"
    )


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
        contenders = [kind(root, x) for kind in kinds]
        print(f"{arguments.rows} x {D} float16, {gigabytes:.2f} GB, chunks of {CHUNK_ROWS} rows\n")
        best = measure(contenders, x, arguments.rounds)
        print_table(contenders, best, gigabytes)
        print_checks(contenders[0], x, best, arguments.rounds)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
