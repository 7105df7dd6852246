"""Activation stores on disk: bytes, interruption, several writers."""

import errno
import itertools
import json
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import saeflow
import saeflow.activations.writer as writer_module
from saeflow.activations import ActivationStore, Part, PartWriter, StoreError, write_manifest
from saeflow.reproduce import child_seed, manifest, sha256_file

N, D, CHUNK = 1000, 12, 128


def rows(n=N, d=D, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(child_seed(seed, "rows")))


def digests(store: Path) -> dict[str, str]:
    return manifest(store, [store])


def write(path: Path, x=None, *, step=N, **settings):
    x = rows() if x is None else x
    settings = {"d": x.shape[1], "chunk_rows": CHUNK, **settings}
    with ActivationStore.create(path, **settings) as writer:
        for first in range(writer.n_rows, len(x), step):
            writer.append(x[first : first + step])
    return ActivationStore.open(path)


@pytest.fixture
def disk_full_at(monkeypatch):
    """Make the file system run out of space when a path that ends so is written."""

    def arm(end: str):
        real = writer_module.write_bytes

        def fail(path, content):
            if str(path).endswith(end):
                path.write_bytes(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            real(path, content)

        monkeypatch.setattr(writer_module, "write_bytes", fail)

    return arm


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_come_back_as_rounded_to_the_stores_type(tmp_path, dtype):
    x = rows()
    store = write(tmp_path / "s", x, dtype=dtype)
    assert store.shape == (N, D)
    assert store.dtype == dtype
    assert torch.equal(store.rows(slice(None)), x.to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_zarr_reads_a_part_and_writes_the_same_chunk_bytes(tmp_path, dtype):
    x = rows()
    x[CHUNK : 2 * CHUNK] = 0  # zarr's default leaves such a chunk out
    write(tmp_path / "s", x, dtype=dtype)
    stored = x.to(getattr(torch, dtype))
    expected = stored.view(torch.uint16).numpy() if dtype == "bfloat16" else stored.numpy()
    group = zarr.open_group(tmp_path / "s" / "part-0", mode="r")
    assert np.array_equal(group["activations"][:], expected)
    assert np.array_equal(group["source"][:], np.arange(N)[:, None])
    assert group["activations"].attrs["dtype"] == dtype
    reference = zarr.create_array(
        store=tmp_path / "z",
        shape=x.shape,
        chunks=(CHUNK, D),
        dtype=expected.dtype,
        compressors=None,
        config={"write_empty_chunks": True},
    )
    reference[:] = expected
    ours = tmp_path / "s" / "part-0" / "activations" / "c"
    assert manifest(ours, [ours]) == manifest(tmp_path / "z" / "c", [tmp_path / "z" / "c"])


def test_the_manifest_has_the_digest_of_every_chunk_file(tmp_path):
    write(tmp_path / "s", metadata={"model": "FFN", "hook_point": "last.pre"})
    content = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert content["shape"] == [N, D]
    assert content["metadata"] == {"model": "FFN", "hook_point": "last.pre"}
    (part,) = content["parts"]
    for array in ("activations", "source"):
        files = [tmp_path / "s" / "part-0" / array / "c" / str(i) / "0" for i in range(8)]
        assert part["sha256"][array] == [sha256_file(file) for file in files]


@pytest.mark.parametrize("step", [1, 100, CHUNK, 999])
def test_bytes_depend_on_the_rows_and_not_on_how_they_were_appended(tmp_path, step):
    write(tmp_path / "a")
    write(tmp_path / "b", step=step)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_any_number_of_rows_is_a_store(tmp_path, n):
    x = rows(n)
    store = write(tmp_path / "s", x)
    assert store.shape == (n, D)
    assert torch.equal(store.rows(slice(None)), x)
    store.verify()


def test_sources_are_kept_by_column(tmp_path):
    source = np.stack([np.arange(N) // 10, np.arange(N) % 10], axis=1)
    with ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK, source_columns=("document", "position")) as writer:
        writer.append(rows()[:300], source[:300])
        writer.append(rows()[300:].numpy(), torch.from_numpy(source[300:]))
    store = ActivationStore.open(tmp_path / "s" / "manifest.json")
    assert store.source_columns == ("document", "position")
    assert np.array_equal(store.source(), source)
    assert store.source([777, 3]).tolist() == [[77, 7], [0, 3]]


def test_read_only_arrays_and_columns_of_one_axis_are_taken(tmp_path):
    x = rows().numpy()
    x.flags.writeable = False
    with ActivationStore.create(tmp_path / "s", D, source_columns=("image",)) as writer:
        writer.append(x, np.arange(N)[::-1].copy())
    assert ActivationStore.open(tmp_path / "s").source([0]).tolist() == [[N - 1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e5])
def test_a_value_that_the_type_cannot_hold_is_refused_with_its_row(tmp_path, bad):
    x = rows(50)
    x[7, 3] = bad
    with ActivationStore.create(tmp_path / "s", D, "float16") as writer:
        writer.append(rows(20))
        with pytest.raises(ValueError, match=r"row 27 .*larger than 65504, the largest float16"):
            writer.append(x)


@pytest.mark.usefixtures("unchecked")
def test_rows_and_sources_of_the_wrong_shape_are_refused(tmp_path):
    writer = ActivationStore.create(tmp_path / "s", D, source_columns=("document", "position"))
    with pytest.raises(ValueError, match=r"rows: shape \[5, 3\] must be \[n, 12\]"):
        writer.append(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="source: needed, because the store has the columns document, position"):
        writer.append(rows(5))
    with pytest.raises(ValueError, match=r"source: shape \[5, 1\] must be \[5, 2\]: document, position"):
        writer.append(rows(5), torch.arange(5))
    with pytest.raises(ValueError, match=r"source: torch\.float32 must be integers"):
        writer.append(rows(5), torch.zeros(5, 2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype: 'int8' is none of float32, float16, bfloat16"),
        ({"chunk_rows": 0}, "chunk_rows: 0 must be at least 1"),
        ({"source_columns": "image"}, "source_columns: 'image' must be a sequence"),
        ({"metadata": {"model": object()}}, "metadata: JSON cannot hold it"),
        ({"if_exists": "append"}, "if_exists: 'append' is none of error, resume, replace"),
    ],
)
def test_settings_that_no_store_can_have_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ActivationStore.create(tmp_path / "s", **{"d": D, **settings})
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_chunks_are_written_by_another_thread_than_the_models(tmp_path, monkeypatch):
    threads = set()
    real = writer_module.write_bytes
    monkeypatch.setattr(writer_module, "write_bytes", lambda *a: (threads.add(threading.get_ident()), real(*a)))
    write(tmp_path / "s")
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_full_disk_is_an_error_that_names_the_chunk_and_loses_nothing(tmp_path, disk_full_at, monkeypatch):
    write(tmp_path / "whole", step=100)
    disk_full_at("activations/c/3/0")
    with pytest.raises(StoreError, match=r"activations/c/3: No space left .*MB are free.*3 whole chunks are kept"):
        write(tmp_path / "s", step=100)
    monkeypatch.undo()
    assert not (tmp_path / "s" / "part-0" / "activations" / "c" / "3" / "0").exists()
    with pytest.raises(StoreError, match="unfinished, 3 whole chunks"):
        ActivationStore.open(tmp_path / "s")
    write(tmp_path / "s", step=100, if_exists="resume")
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


def test_a_full_disk_at_the_metadata_is_an_error_and_all_rows_are_kept(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "whole")
    monkeypatch.setattr(zarr, "create_array", fail)
    with pytest.raises(StoreError, match="metadata: No space left"):
        write(tmp_path / "s")
    monkeypatch.undo()
    with ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK, if_exists="resume") as writer:
        assert writer.n_rows == N
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


KILLED = """
import os, sys, torch
sys.path[:0] = [sys.argv[2]]
from saeflow.activations import ActivationStore
x = torch.arange(1000 * 12, dtype=torch.float32).view(1000, 12)
writer = ActivationStore.create(sys.argv[1], 12, chunk_rows=128)
writer.append(x[:700])
while len(writer._digests["source"]) < 5:
    pass
os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_leaves_nothing_that_looks_complete_and_is_continued_to_the_same_bytes(tmp_path):
    x = torch.arange(N * D, dtype=torch.float32).view(N, D)
    library = Path(saeflow.__file__).parents[1]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "s"), str(library)], check=False
    )
    assert killed.returncode == -9
    with pytest.raises(StoreError, match="unfinished, 5 whole chunks"):
        ActivationStore.open(tmp_path / "s")
    with pytest.raises(StoreError, match="unfinished, 5 whole chunks"):
        Part.read(tmp_path / "s" / "part-0")
    with pytest.raises(StoreError, match="pass if_exists='resume'"):
        write(tmp_path / "s", x)
    with ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK, if_exists="resume") as writer:
        assert writer.n_rows == 5 * CHUNK
        writer.append(x[writer.n_rows :])
    write(tmp_path / "whole", x)
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["torn journal", "changed chunk", "missing chunk"])
def test_a_capture_goes_on_after_its_last_good_chunk(tmp_path, damage):
    write(tmp_path / "whole")
    writer = ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK)
    writer.append(rows()[:700])
    writer.abort()
    part = tmp_path / "s" / "part-0"
    chunk = part / "source" / "c" / "2" / "0"
    if damage == "torn journal":
        journal = (part / "journal.jsonl").read_text()
        (part / "journal.jsonl").write_text(journal[:-30])
    elif damage == "changed chunk":
        chunk.write_bytes(bytes(len(chunk.read_bytes())))
    else:
        chunk.unlink()
    with ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK, if_exists="resume") as writer:
        assert writer.n_rows == (4 if damage == "torn journal" else 2) * CHUNK
        writer.append(rows()[writer.n_rows :])
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


def test_an_exception_in_the_with_block_leaves_the_store_unfinished(tmp_path):
    def capture():
        with ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK) as writer:
            writer.append(rows())
            raise KeyError("from the model")

    with pytest.raises(KeyError, match="from the model"):
        capture()
    with pytest.raises(StoreError, match="unfinished, 7 whole chunks"):
        ActivationStore.open(tmp_path / "s")


def test_a_finished_store_can_be_continued(tmp_path):
    write(tmp_path / "whole")
    write(tmp_path / "s", rows()[:300])
    assert write(tmp_path / "s", rows()[:300], if_exists="resume").shape == (300, D)
    write(tmp_path / "s", if_exists="resume")
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_is_not_continued_with_other_settings(tmp_path, finished):
    with ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK, metadata={"model": "A"}) as writer:
        writer.append(rows())
        if not finished:
            writer.abort()
    before = digests(tmp_path / "s")
    with pytest.raises(StoreError, match=r"metadata is \{'model': 'A'\} and not \{'model': 'B'\}"):
        ActivationStore.create(tmp_path / "s", D, chunk_rows=CHUNK, metadata={"model": "B"}, if_exists="resume")
    with pytest.raises(StoreError, match="chunk_rows is 128 and not 64"):
        ActivationStore.create(tmp_path / "s", D, chunk_rows=64, metadata={"model": "A"}, if_exists="resume")
    assert digests(tmp_path / "s") == before


def test_what_lies_there_is_replaced_only_when_asked_and_only_if_it_is_a_store(tmp_path):
    write(tmp_path / "whole")
    write(tmp_path / "s", rows(seed=1))
    with pytest.raises(StoreError, match="holds a store; pass if_exists='resume' to continue it, 'replace'"):
        write(tmp_path / "s")
    write(tmp_path / "s", if_exists="replace")
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")
    mine = tmp_path / "mine" / "part-0" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(StoreError, match="holds something that is no part of a store"):
        write(tmp_path / "mine", if_exists="replace")
    assert mine.read_text() == "keep"


def test_a_writer_takes_no_rows_after_its_end(tmp_path):
    with ActivationStore.create(tmp_path / "s", D) as writer:
        pass
    with pytest.raises(StoreError, match="the writer is closed"):
        writer.append(rows())


def write_parts(store: Path, cuts=(0, 300, 301, N), **settings):
    x = rows()
    parts = []
    for i, (first, last) in enumerate(itertools.pairwise(cuts)):
        with PartWriter(store / f"part-{i}", d=D, chunk_rows=CHUNK, source_columns=("image",), **settings) as writer:
            writer.append(x[first:last], torch.arange(first, last))
        parts.append(Part.read(store / f"part-{i}"))
    return parts


def test_parts_of_several_jobs_are_one_store(tmp_path):
    parts = write_parts(tmp_path, metadata={"model": "A"})
    with pytest.raises(StoreError, match=r"no manifest.json beside the parts; write_manifest"):
        ActivationStore.open(tmp_path)
    store = ActivationStore.open(write_manifest(tmp_path, parts))
    assert store.metadata == {"model": "A"}
    assert torch.equal(store.rows(slice(None)), rows())
    assert store.source([999, 300, 299]).tolist() == [[999], [300], [299]]
    with pytest.raises(StoreError, match="written by several jobs; continue each with PartWriter"):
        write(tmp_path, if_exists="resume")
    assert write(tmp_path, if_exists="replace").shape == (N, D)
    assert not (tmp_path / "part-1").exists()


def test_parts_that_do_not_fit_one_another_are_no_store(tmp_path):
    parts = write_parts(tmp_path)
    with PartWriter(tmp_path / "part-9", d=D, dtype="float16", chunk_rows=CHUNK, source_columns=("image",)) as writer:
        pass
    with pytest.raises(StoreError, match="part-9: dtype is 'float16' and not 'float32', as part-0 has it"):
        write_manifest(tmp_path, [*parts, Part.read(writer.directory)])
    with pytest.raises(StoreError, match=r"part-0: each part must lie in .*, and be given once"):
        write_manifest(tmp_path, [*parts, parts[0]])
    with pytest.raises(StoreError, match="needs one part or more"):
        write_manifest(tmp_path, [])


def test_a_manifest_that_is_none_is_refused(tmp_path):
    write(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    content = json.loads(path.read_text())
    for key, value, message in (
        ("version", 2, "version 2, this library reads 1"),
        ("shape", [N + 1, D], "shape says 1001 rows, the parts say 1000"),
        ("parts", [{"rows": N}], "KeyError"),
    ):
        path.write_text(json.dumps({**content, key: value}))
        with pytest.raises(StoreError, match=f"not the manifest of an activation store .*{message}"):
            ActivationStore.open(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(StoreError, match="no such directory"):
        ActivationStore.open(tmp_path / "s")
