"""What each row, chunk and job costs where a study gets large: the measured numbers of docs/scaling.md.

    python benchmarks/scaling.py [--directory <folder with 3 GB free>] [--rounds 3]

One process, one thread of torch, files in the page cache, the least CPU time of several rounds. A store of 2,048-wide
bfloat16 rows is written and read, shuffled, to float32; manifests of more and more chunks are written and opened; the
order of an epoch is drawn for more and more blocks; dry runs plan a study with more and more capture jobs.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from saeflow.activations import ActivationStore, Part, write_manifest  # noqa: E402
from saeflow.activations.layout import Spec  # noqa: E402
from saeflow.activations.shuffle import MixingBuffers  # noqa: E402

D, CHUNK_ROWS, N_CHUNKS, BATCH = 2048, 16384, 6, 4096
SOURCE = ("document", "position")


def least(work: Callable[[], object], rounds: int) -> float:
    """Least CPU seconds of this process."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def store_costs(folder: Path, rounds: int) -> None:
    x = torch.randn(BATCH, D).bfloat16()
    source = torch.zeros(BATCH, 2, dtype=torch.int64)
    n_rows = CHUNK_ROWS * N_CHUNKS

    def write() -> None:
        with ActivationStore.create(
            folder, D, "bfloat16", CHUNK_ROWS, source_columns=SOURCE, if_exists="replace"
        ) as writer:
            for _ in range(n_rows // BATCH):
                writer.append(x, source)

    def read(check_digests: bool) -> None:
        store = ActivationStore.open(folder, check_digests=check_digests)
        for _ in store.batches(BATCH, seed=0, epochs=1):
            pass

    gigabytes = n_rows * D * 2 / 1e9
    for name, seconds in (
        ("write, digests included", least(write, rounds)),
        ("first pass, shuffled to float32, digests checked", least(lambda: read(True), rounds)),
        ("a pass, shuffled to float32", least(lambda: read(False), rounds)),
    ):
        print(f"{name:50} {gigabytes / seconds:6.2f} GB per CPU s, {1e6 * seconds / n_rows:6.2f} us a row", flush=True)
    paths = list(folder.rglob("*"))
    n_files = sum(path.is_file() for path in paths)
    print(f"{N_CHUNKS} chunks, one part: {n_files} files and {len(paths) - n_files} folders below the store")


def manifest_costs(folder: Path, rounds: int) -> None:
    spec = Spec(D, "bfloat16", CHUNK_ROWS, SOURCE)
    for n_chunks in (1_000, 10_000, 60_000):
        digests = tuple(f"{i:064x}" for i in range(n_chunks))
        part = Part(folder / "part-0", spec, n_chunks * CHUNK_ROWS, {"activations": digests, "source": digests})
        written = least(lambda part=part: write_manifest(folder, [part]), rounds)
        opened = least(lambda: ActivationStore.open(folder), rounds)
        size = (folder / "manifest.json").stat().st_size
        print(
            f"manifest of {n_chunks:6} chunks: {size / 1e6:6.2f} MB, written in {written:.2f} CPU s, "
            f"opened in {opened:.2f}",
            flush=True,
        )


def order_costs(rounds: int) -> None:
    """Blocks of 64 KiB, 16 rows of the store above: 1,024 of them in a chunk."""
    for n_chunks in (1_000, 4_000):
        chunk_rows = np.full(n_chunks, CHUNK_ROWS)

        def deal(chunk_rows: np.ndarray = chunk_rows) -> None:
            MixingBuffers(chunk_rows, block_rows=16, buffer_rows=32768, seed=0).deal(0)

        seconds = least(deal, rounds)
        blocks, peak = n_chunks * CHUNK_ROWS / 16e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"epoch of {blocks:.2f} M blocks: {seconds:.2f} CPU s, peak of the process {peak:.2f} GB", flush=True)


def planning_costs(folder: Path, rounds: int) -> None:
    """CPU seconds of a dry run of one network's capture and SAEs, by the number of capture jobs."""
    study = {"study": "scale", "classifiers": {"architectures": ["SimpleNN"], "seeds": [0]}}
    study["saes"] = {"variants": {"topk": {"architecture": "topk", "d_sae": 64, "k": 4}}}
    for shards in (1, 64, 512, 2048):
        path = folder / f"{shards}.yaml"
        path.write_text(yaml.safe_dump(study | {"activations": {"shards": shards}}))
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
        command += ["--dry-run", "--quiet", "all", "--configfile", path]
        seconds = []
        for _ in range(rounds):
            before = os.times()
            subprocess.run(command, check=True, capture_output=True)
            after = os.times()
            seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        print(f"dry run with {shards:5} capture jobs: {min(seconds):6.2f} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary folder if not given")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        order_costs(arguments.rounds)
        store_costs(folder / "store", arguments.rounds)
        (folder / "manifests").mkdir()
        manifest_costs(folder / "manifests", arguments.rounds)
        planning_costs(folder, arguments.rounds)


if __name__ == "__main__":
    main()
