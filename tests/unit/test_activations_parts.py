"""A store that several jobs write is, chunk for chunk and batch for batch, the store that one job writes."""

import pytest
import torch

from saeflow.activations import ActivationStore, Part, PartWriter, batches_of, rows_of, write_manifest

N, D, CHUNK, BATCH = 1000, 6, 64, 90


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7, 16, 20])
@pytest.mark.parametrize("n_rows", [0, 1, 64, 65, N])
def test_parts_are_whole_chunks_that_follow_one_another(n_parts, n_rows):
    parts = [rows_of(i, n_parts, n_rows, CHUNK) for i in range(n_parts)]
    assert [row for part in parts for row in part] == list(range(n_rows))
    assert all(part.start % CHUNK == 0 for part in parts if part)
    sizes = [-(-len(part) // CHUNK) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="part: 3 of 3, counted from 0"):
        rows_of(3, 3, N, CHUNK)


@pytest.mark.parametrize("n_parts", [1, 3, 16, 20])
def test_every_row_is_run_in_the_batch_that_a_single_job_runs_it_in(n_parts):
    grid = {batch for batch, _ in batches_of(range(N), N, BATCH)}
    for i in range(n_parts):
        own = rows_of(i, n_parts, N, CHUNK)
        run = list(batches_of(own, N, BATCH))
        assert {batch for batch, _ in run} <= grid
        assert [row for batch, kept in run for row in batch[kept]] == list(own)


def store_of(path, n_parts):
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    for i in range(n_parts):
        own = rows_of(i, n_parts, N, CHUNK)
        with PartWriter(path / f"part-{i}", d=D, chunk_rows=CHUNK, source_columns=("image",)) as writer:
            for batch, kept in batches_of(own, N, BATCH):
                writer.append(x[batch.start : batch.stop][kept], torch.arange(batch.start, batch.stop)[kept])
    return ActivationStore.open(write_manifest(path, [Part.read(path / f"part-{i}") for i in range(n_parts)]))


def chunks_of(path):
    parts = sorted(path.glob("part-*"), key=lambda part: int(part.name.removeprefix("part-")))
    files = [sorted(part.glob("activations/c/*/0"), key=lambda file: int(file.parent.name)) for part in parts]
    return [file.read_bytes() for of_part in files for file in of_part]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, store_of(path, 1)


# With more parts than chunks some are empty.
@pytest.mark.parametrize("n_parts", [2, 3, 20])
def test_chunks_and_batches_are_the_same_for_any_number_of_parts(n_parts, whole, tmp_path):
    path, one = whole
    several = store_of(tmp_path, n_parts)
    several.verify()
    assert chunks_of(tmp_path) == chunks_of(path)
    assert torch.equal(several.source(), one.source())
    for shuffle in ("chunks", "rows", None):
        # A buffer of a few blocks: as in a store that exceeds memory.
        sizes = {"block_bytes": 8 * D * 4, "buffer_bytes": 200 * D * 4} if shuffle == "chunks" else {}
        a, b = (store.batches(50, seed=3, epochs=2, shuffle=shuffle, **sizes) for store in (one, several))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_stream_goes_on_in_the_store_of_another_number_of_parts(whole, tmp_path):
    first, second = (store.batches(64, seed=1, steps=9) for store in (whole[1], store_of(tmp_path, 3)))
    for _ in range(4):
        next(first)
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(first), next(second))
