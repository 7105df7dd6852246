"""Blocks of a store in memory, to pick their rows in any order."""

import itertools
import mmap
import operator
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from saeflow.activations.chunks import Chunk, ChunkedRows, Runs
from saeflow.activations.shuffle import MixingBuffers

Blocks = Int[np.ndarray, " _"]


class Buffer:
    """A buffer in main memory. What comes next is read ahead by the system.

    Arguments:
        rows: the store's.
        buffers: which rows a block has, and the most rows that are held.
    """

    device = torch.device("cpu")

    def __init__(self, rows: ChunkedRows, buffers: MixingBuffers) -> None:
        self._rows = rows
        self._buffers = buffers
        self._held: Blocks | None = None
        self.memory = self._room()

    def hold(self, blocks: Blocks, following: Blocks) -> None:
        """Have these blocks in `memory`, one after another.

        Arguments:
            following: those that will be asked for next.
        """
        # A store that fits into one buffer is read once.
        if self._held is not None and np.array_equal(self._held, blocks):
            return
        self._held = None
        self._take(blocks)
        self._held = blocks
        if not np.array_equal(following, blocks):
            self._expect(following)

    def _room(self) -> Shaped[Tensor, "n width"]:
        return huge_pages(self._buffers.quality.buffer_rows, self._rows.width, self._rows.dtype)

    def _take(self, blocks: Blocks) -> None:
        filled = 0
        for chunk, runs, n_rows in self._runs(blocks):
            chunk.read(runs, self.memory[filled : filled + n_rows])
            filled += n_rows

    def _expect(self, blocks: Blocks) -> None:
        for chunk, runs, _ in self._runs(blocks):
            chunk.expect(runs)

    def _runs(self, blocks: Blocks) -> Iterator[tuple[Chunk, Runs, int]]:
        """Blocks by chunk, because each file is opened once, and how many rows they are."""
        buffers = self._buffers
        columns = (array[blocks].tolist() for array in (buffers.chunk, buffers.start, buffers.n_rows))
        for chunk, places in itertools.groupby(zip(*columns, strict=True), key=operator.itemgetter(0)):
            runs = [(start, n) for _, start, n in places]
            yield self._rows.chunks[chunk], runs, sum(n for _, n in runs)


class DeviceBuffer(Buffer):
    """A buffer in the memory of a GPU, where picking rows costs next to nothing; a thread fills a second one meanwhile.

    Arguments:
        device: whose memory.
    """

    def __init__(self, rows: ChunkedRows, buffers: MixingBuffers, device: torch.device) -> None:
        self.device = device
        super().__init__(rows, buffers)
        self._spare: Tensor | None = None
        self._stream = torch.cuda.Stream(device)
        self._reader = ThreadPoolExecutor(1, "activations")
        self._coming: tuple[Blocks, Future[Tensor]] | None = None

    def _room(self) -> Shaped[Tensor, "n width"]:
        n, width = self._buffers.quality.buffer_rows, self._rows.width
        return torch.empty(n, width, dtype=self._rows.dtype, device=self.device)

    def _take(self, blocks: Blocks) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            filled = coming[1].result()
            if np.array_equal(coming[0], blocks):
                self.memory, self._spare = filled, self.memory
                return
        self._read_into(self.memory, blocks).result()

    def _expect(self, blocks: Blocks) -> None:
        if self._spare is None:
            self._spare = self._room()
        self._coming = blocks, self._read_into(self._spare, blocks)

    def _read_into(self, memory: Tensor, blocks: Blocks) -> "Future[Tensor]":
        # Batches that were picked from this memory may still be on their way.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return self._reader.submit(self._read, memory, blocks)

    def _read(self, memory: Tensor, blocks: Blocks) -> Tensor:
        filled = 0
        # A thread has a current device of its own; the stream names it.
        with torch.cuda.stream(self._stream):
            for chunk, runs, n_rows in self._runs(blocks):
                staged = self._rows.empty(n_rows, pin=True)
                chunk.read(runs, staged)
                memory[filled : filled + n_rows].copy_(staged, non_blocking=True)
                filled += n_rows
        self._stream.synchronize()
        return memory


def huge_pages(n: int, width: int, dtype: torch.dtype) -> Shaped[Tensor, "n width"]:
    """Memory for picking rows at random, in large pages where the system has them: a fifth less time per row."""
    # Python's default, shared memory, never gets large pages.
    memory = mmap.mmap(-1, max(1, n * width * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=n * width).view(n, width)
