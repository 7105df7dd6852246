"""Reading activation stores: rows, shuffled batches, positions, damage."""

import errno
import math
import os

import numpy as np
import pytest
import torch

from saeflow.activations import ActivationStore, Part, PartWriter, StoreError, write_manifest
from saeflow.activations.shuffle import MixingBuffers

N, D, CHUNK = 1000, 12, 128
ROW_BYTES = 4 * D
# 10 buffers of 10 or so blocks of 10 rows each
STREAMED = {"shuffle": "chunks", "block_bytes": 10 * ROW_BYTES, "buffer_bytes": 110 * ROW_BYTES}
SHUFFLES = {"in order": {"shuffle": None}, "rows": {"shuffle": "rows"}, "chunks": STREAMED, "one buffer": {}}


def numbered(n=N, d=D):
    """Rows that say which they are: row i holds i, i + 0.01, ..."""
    return torch.arange(n)[:, None] + torch.arange(d) / 100


def write(path, x, chunk_rows=CHUNK, **settings):
    with ActivationStore.create(path, x.shape[1], chunk_rows=chunk_rows, **settings) as writer:
        writer.append(x)
    return ActivationStore.open(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store of three parts."""
    path = tmp_path_factory.mktemp("store")
    parts = []
    for i, x in enumerate(numbered().split([300, 1, N - 301])):
        with PartWriter(path / f"part-{i}", d=D, chunk_rows=CHUNK) as writer:
            writer.append(x)
        parts.append(Part.read(writer.directory))
    write_manifest(path, parts)
    return path


@pytest.fixture
def store(path):
    return ActivationStore.open(path)


def shown(batches) -> list[int]:
    return torch.cat([batch[:, 0] for batch in batches]).long().tolist()


@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.5, 0.7, 0.9])
def test_rows_are_set_aside_at_the_end_of_every_chunk(store, share):
    others, aside = store.split(share)
    n = others.shape[0]
    kept = np.setdiff1d(np.arange(N), aside)
    assert np.array_equal(others.rows(slice(None)), numbered(N)[kept])
    assert np.array_equal(others.source(), store.source()[kept])
    assert sorted(shown(others.batches(50, epochs=1))) == kept.tolist()
    chunks = [128, 128, 44, 1, *[128] * 5, 59]
    assert [int(np.isin(rows, aside).sum()) for rows in np.split(np.arange(N), np.cumsum(chunks))[:-1]] == [
        math.floor(share * rows) for rows in chunks
    ]
    with pytest.raises(IndexError):
        others.rows([n])
    if len(aside):
        with pytest.raises(StoreError, match="store"):
            store.batches(50).load_state_dict(others.batches(50).state_dict())


@pytest.mark.parametrize("share", [-0.1, 1])
def test_a_share_set_aside_is_less_than_all(store, share):
    with pytest.raises(ValueError, match=rf"share: {share} must lie in \[0, 1\)"):
        store.split(share)


@pytest.mark.parametrize(
    "indices",
    [[5], [999, 0, 300, 301, 300], np.arange(N)[::-1].copy(), torch.arange(0, N, 7), slice(290, 310), slice(9, 2, -3)],
)
def test_rows_are_picked_in_the_order_asked_for(store, indices):
    expected = numbered().numpy()[indices]
    assert np.array_equal(store.rows(indices), expected)


@pytest.mark.parametrize("indices", [[], slice(5, 5), np.empty(0, dtype=np.int64)])
def test_no_rows_are_an_empty_matrix(store, indices):
    assert store.rows(indices).shape == (0, D)


@pytest.mark.parametrize("indices", [[N], [-1], [0, 5000]])
def test_a_row_that_is_not_there_is_an_error(store, indices):
    with pytest.raises(IndexError, match="must lie in 0 to 999"):
        store.rows(indices)


@pytest.mark.usefixtures("unchecked")
def test_row_numbers_are_integers(store):
    with pytest.raises(IndexError, match="bool must be a list of row numbers"):
        store.rows(np.ones(N, dtype=bool))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_each_epoch_shows_every_row_once(store, shuffle):
    order = shown(store.batches(64, seed=3, epochs=3, **SHUFFLES[shuffle]))
    epochs = [order[i * N : (i + 1) * N] for i in range(3)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert (epochs[0] == epochs[1]) == (shuffle == "in order")
    assert (epochs[0] == list(range(N))) == (shuffle == "in order")


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_whole_rows_are_shown(store, shuffle):
    for batch in store.batches(64, seed=3, **SHUFFLES[shuffle]):
        assert torch.equal(batch, numbered()[batch[:, 0].long()])


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_seed_gives_the_same_batches(store, path, shuffle):
    again = ActivationStore.open(path).batches(64, seed=3, epochs=2, **SHUFFLES[shuffle])
    order = shown(store.batches(64, seed=3, epochs=2, **SHUFFLES[shuffle]))
    assert shown(again) == order
    assert (shown(store.batches(64, seed=4, epochs=2, **SHUFFLES[shuffle])) == order) == (shuffle == "in order")


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("steps", [1, 15, 16, 40])
def test_a_stream_left_at_any_batch_is_taken_up_at_the_next(store, path, shuffle, steps):
    whole = list(store.batches(64, seed=3, steps=45, **SHUFFLES[shuffle]))
    first = store.batches(64, seed=3, steps=45, **SHUFFLES[shuffle])
    for _ in range(steps):
        next(first)
    second = ActivationStore.open(path).batches(64, seed=3, steps=45, **SHUFFLES[shuffle])
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == 45 - steps
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[steps:], strict=True))


@pytest.mark.parametrize(("name", "value"), [("seed", 4), ("batch_size", 65), ("shuffle", "rows"), ("buffer_bytes", 9)])
def test_a_position_in_another_order_is_refused(store, name, value):
    state = store.batches(64, seed=3).state_dict()
    settings = {"batch_size": 64, "seed": 3, name: value}
    with pytest.raises(StoreError, match=f"{name}: the state has .*, these batches have {value!r}"):
        store.batches(**settings).load_state_dict(state)


def test_a_position_in_another_store_is_refused(store, tmp_path):
    other = write(tmp_path / "s", numbered() + 1)
    with pytest.raises(StoreError, match="store: the state has"):
        other.batches(64).load_state_dict(store.batches(64).state_dict())


def test_steps_count_batches_and_epochs_count_rows(store):
    assert [len(batch) for batch in store.batches(300, epochs=1)] == [300, 300, 300, 100]
    assert [len(batch) for batch in store.batches(300, steps=5)] == [300] * 5
    assert [len(batch) for batch in store.batches(2500, steps=2)] == [2500, 2500]
    assert len(store.batches(300)) == 4
    assert len(store.batches(300, steps=5)) == 5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1, "epochs": 1}, "steps, epochs: give one of them, not 1 and 1"),
        ({"steps": 0}, "steps: 0 must be at least 1"),
        ({"shuffle": "blocks"}, "shuffle: 'blocks' is none of chunks, rows, None"),
    ],
)
def test_settings_of_batches_that_contradict_are_refused(store, settings, message):
    with pytest.raises(ValueError, match=message):
        store.batches(64, **settings)


def test_an_empty_store_has_no_batches(tmp_path):
    with pytest.raises(StoreError, match="the store is empty"):
        write(tmp_path / "s", numbered(0)).batches(64)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_array_in_memory_gives_the_batches_of_a_store(tmp_path, dtype):
    x = (numbered() / 1000).to(getattr(torch, dtype))
    on_disk = write(tmp_path / "s", x, dtype=dtype)
    in_memory = ActivationStore.from_array(x, metadata={"model": "A"})
    assert (in_memory.shape, in_memory.dtype, in_memory.metadata) == ((N, D), dtype, {"model": "A"})
    for shuffle in ("chunks", "rows", None):
        pairs = zip(in_memory.batches(64, 1, shuffle=shuffle), on_disk.batches(64, 1, shuffle=shuffle), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(in_memory.rows([7, 3]), on_disk.rows([7, 3]))
    assert torch.equal(in_memory.source(), on_disk.source())
    in_memory.verify()


def test_batches_do_not_share_memory_with_an_array(tmp_path):
    x = numbered()
    for batch in ActivationStore.from_array(x).batches(64, shuffle=None):
        batch.zero_()
    assert torch.equal(x, numbered())


def test_every_bfloat16_and_float16_number_comes_back_exactly(tmp_path):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(-1, 16)
    for dtype in (torch.bfloat16, torch.float16):
        x = bits.view(dtype)
        x = x[x.isfinite().all(dim=1)]
        store = write(tmp_path / str(dtype), x, dtype=str(dtype).removeprefix("torch."))
        assert torch.equal(store.rows(slice(None)), x.float())
        assert torch.equal(torch.cat(list(store.batches(100, shuffle=None))), x.float())


def test_batches_come_in_the_number_type_asked_for(tmp_path):
    store = write(tmp_path / "s", numbered(), dtype="bfloat16")
    for shuffle in ("chunks", "rows", None):
        full = torch.cat(list(store.batches(64, shuffle=shuffle)))
        for dtype in (torch.bfloat16, torch.float64):
            batches = list(store.batches(64, shuffle=shuffle, dtype=dtype))
            assert torch.equal(torch.cat(batches), full.to(dtype))


def batch_mean_variance_ratio(store, batch_size, seeds, **settings) -> float:
    """Variance of the mean of a batch, relative to that of independent rows."""
    x = store.rows(slice(None))
    means = [b.mean() for s in range(seeds) for b in store.batches(batch_size, s, **settings) if len(b) == batch_size]
    return float(torch.stack(means).var(correction=0) / x.var() * batch_size)


def test_mixing_is_as_good_as_stated(tmp_path):
    # The worst case that the statement is about: rows of a block alike, blocks independent.
    block_rows, n_blocks, batch_size = 16, 1024, 128
    values = torch.randn(n_blocks, 1, generator=torch.Generator().manual_seed(0))
    store = write(tmp_path / "s", values.repeat_interleave(block_rows, dim=0), chunk_rows=1024)
    settings = {"block_bytes": block_rows * 4, "buffer_bytes": 32 * block_rows * 4}
    quality = store.batches(batch_size, **settings).quality
    assert quality.min_blocks == 32
    stated = quality.variance_ratio(batch_size)
    measured = batch_mean_variance_ratio(store, batch_size, 20, **settings)
    assert stated == 1 + 128 / 32
    # Drawing without replacement makes it a little better than stated.
    assert 0.85 * stated < measured < 1.02 * stated
    for better in ({"shuffle": "rows"}, {"buffer_bytes": 1 << 20}):
        assert 0.8 < batch_mean_variance_ratio(store, batch_size, 20, **better) < 1.2
    assert store.batches(batch_size).quality.variance_ratio(batch_size) == 1


def test_a_batch_draws_from_all_blocks_of_its_buffer():
    chunk_rows = np.array([1000] * 20)
    buffers = MixingBuffers(chunk_rows, block_rows=50, buffer_rows=2000, seed=0)
    assert buffers.quality.n_buffers == 10
    assert buffers.quality.min_blocks == 40
    deal = buffers.deal(epoch=0)
    assert sorted(np.concatenate(deal)) == list(range(400))
    # 40 blocks drawn from 20 chunks: about 17 chunks, never a run of neighbors
    assert min(len(set(buffers.chunk[blocks])) for blocks in deal) >= 12
    order = buffers.row_order(epoch=0, buffer=0, n_rows=2000)
    assert len(set(order[:512] // 50)) == 40


def test_buffers_are_even_and_stay_within_their_memory():
    chunk_rows = np.array([1000] * 7 + [13])
    for buffer_rows in (100, 999, 2000, 7012, 7013):
        buffers = MixingBuffers(chunk_rows, block_rows=64, buffer_rows=buffer_rows, seed=0)
        sizes = [int(buffers.n_rows[blocks].sum()) for blocks in buffers.deal(epoch=1)]
        assert sum(sizes) == 7013
        assert max(sizes) <= buffers.quality.buffer_rows <= max(buffer_rows, 64)
        assert min(map(len, buffers.deal(epoch=1))) == buffers.quality.min_blocks
        assert max(map(len, buffers.deal(0))) - buffers.quality.min_blocks <= 1
    assert buffers.n_buffers == 1


def test_a_store_that_fits_into_the_buffer_is_read_once(store, monkeypatch):
    list(store.batches(64, epochs=1))
    batches = store.batches(64, epochs=3)
    next(batches)
    monkeypatch.setattr(os, "open", None)
    assert len(list(batches)) == 46


def test_reading_keeps_no_chunk_file_open(tmp_path):
    store = write(tmp_path / "s", numbered(), chunk_rows=4)
    before = len(os.listdir("/proc/self/fd"))
    store.rows(np.arange(N))
    list(store.batches(64, shuffle="rows"))
    assert len(os.listdir("/proc/self/fd")) == before


CHUNK_2 = "part-0/activations/c/2/0"


@pytest.fixture
def damaged(tmp_path):
    """A store, and its third chunk to be damaged."""
    write(tmp_path / "s", numbered())
    return tmp_path / "s", tmp_path / "s" / CHUNK_2


READERS = {
    "rows": lambda store: store.rows([300]),
    "slice": lambda store: store.rows(slice(0, N)),
    "chunks": lambda store: list(store.batches(64)),
    "streamed": lambda store: list(store.batches(64, **STREAMED)),
    "shuffled rows": lambda store: list(store.batches(64, shuffle="rows")),
    "in order": lambda store: list(store.batches(64, shuffle=None)),
    "verify": lambda store: store.verify(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", ["truncated", "missing", "changed", "too long"])
def test_a_damaged_chunk_is_an_error_that_names_it(damaged, reader, damage):
    path, chunk = damaged
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    message = {
        "truncated": "100 bytes, a whole chunk has 6144",
        "missing": "No such file",
        "changed": "sha256 .* is not the manifest's .*; the chunk changed",
        "too long": "6145 bytes, a whole chunk has 6144",
    }[damage]
    {
        "truncated": lambda: os.truncate(chunk, 100),
        "missing": chunk.unlink,
        "changed": lambda: chunk.write_bytes(content),
        "too long": lambda: os.truncate(chunk, 6145),
    }[damage]()
    with pytest.raises(StoreError, match=f"{CHUNK_2}: {message}"):
        READERS[reader](ActivationStore.open(path))
    if damage not in ("changed",):
        with pytest.raises(StoreError, match=f"{CHUNK_2}: {message}"):
            READERS[reader](ActivationStore.open(path, check_digests=False))


@pytest.mark.parametrize("reader", sorted(set(READERS) - {"rows", "shuffled rows"}))
def test_a_read_error_names_the_chunk(damaged, reader, monkeypatch):
    path, chunk = damaged
    store = ActivationStore.open(path, check_digests=False)
    real = os.preadv

    def fail(file, buffers, offset):
        if os.readlink(f"/proc/self/fd/{file}") == str(chunk):
            raise OSError(errno.EIO, "Input/output error")
        return real(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StoreError, match=f"{CHUNK_2}: Input/output error"):
        READERS[reader](store)


def test_a_chunk_truncated_while_it_is_being_read_is_an_error_that_names_it(damaged):
    path, chunk = damaged
    store = ActivationStore.open(path)
    list(store.batches(64))
    os.truncate(chunk, 100)
    with pytest.raises(StoreError, match=f"{CHUNK_2}: 100 bytes, a whole chunk has 6144"):
        list(store.batches(64))


def test_verify_names_every_bad_chunk(damaged):
    path, chunk = damaged
    other = path / "part-0" / "source" / "c" / "0" / "0"
    os.truncate(chunk, 100)
    other.write_bytes(bytes(other.stat().st_size))
    with pytest.raises(StoreError) as error:
        ActivationStore.open(path).verify()
    assert str(error.value).count("\n") == 1
    assert str(chunk) in str(error.value)
    assert str(other) in str(error.value)


def test_a_padded_last_chunk_is_checked_whole(tmp_path):
    write(tmp_path / "s", numbered())
    last = tmp_path / "s" / "part-0" / "activations" / "c" / "7" / "0"
    content = bytearray(last.read_bytes())
    content[-1] = 1
    last.write_bytes(content)
    with pytest.raises(StoreError, match="c/7/0: sha256"):
        ActivationStore.open(tmp_path / "s").verify()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_batches_on_a_gpu_are_those_on_the_cpu(store, shuffle):
    on_gpu = store.batches(64, seed=3, epochs=2, device="cuda", **SHUFFLES[shuffle])
    for a, b in zip(on_gpu, store.batches(64, seed=3, epochs=2, **SHUFFLES[shuffle]), strict=True):
        assert a.is_cuda
        assert torch.equal(a.cpu(), b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rows_from_a_gpu_are_written_as_those_from_the_cpu(tmp_path):
    x = numbered()
    with ActivationStore.create(tmp_path / "s", D, "bfloat16", CHUNK) as writer:
        writer.append(x.cuda(), torch.arange(N, device="cuda"))
    assert torch.equal(ActivationStore.open(tmp_path / "s").rows(slice(None)), x.bfloat16().float())
