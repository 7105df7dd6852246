"""The order in which an epoch shows the rows of a store: a pure function of the seed and the epoch.

`"rows"` is one permutation of all rows. It keeps 8 bytes per row in memory and reads each row by itself, which only
memory and a page cache that holds the whole store make fast.

`"chunks"` streams. Chunks are cut into blocks of consecutive rows; a permutation of the blocks is dealt into buffers;
the rows of a buffer are permuted in memory. What it guarantees, with m the blocks in the smallest buffer:

- each epoch shows every row exactly once;
- a batch is a uniform draw without replacement from the m or more blocks of its buffer, which are a uniform draw from
  the whole store; a store that fits into one buffer is permuted exactly;
- if the rows of one block were all alike, and blocks independent, the mean of a batch of b rows would have at most
  (1 + b / m) times the variance that independent rows give: the worst case, `Quality.variance_ratio`.

With the store's default sizes m is 1,024 or more wherever a row takes 64 KiB or less.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from saeflow.reproduce import child_seed


@dataclass(frozen=True)
class Quality:
    """How well a shuffle mixes.

    Arguments:
        n_buffers: buffers per epoch; 1 is an exact permutation of all rows.
        min_blocks: blocks in the smallest buffer: places of the store that every batch draws from.
        block_rows: rows in a block.
        buffer_rows: rows in the largest buffer, at most.
    """

    n_buffers: int
    min_blocks: int
    block_rows: int
    buffer_rows: int

    def variance_ratio(self, batch_size: int) -> float:
        """Variance of a batch mean relative to independent rows, if the rows of a block were all alike."""
        return 1.0 if self.n_buffers == 1 else 1 + batch_size / self.min_blocks


class MixingBuffers:
    """Blocks of each buffer, and the order of the rows in it, for any epoch."""

    def __init__(self, chunk_rows: Int[np.ndarray, " chunks"], *, block_rows: int, buffer_rows: int, seed: int) -> None:
        """
        Arguments:
            chunk_rows: rows of each chunk.
            block_rows: rows of a block; the last block of a chunk may be shorter.
            buffer_rows: rows that may be in memory at a time; one block at least is.
            seed: root of the epochs' draws.
        """
        total = int(chunk_rows.sum())
        block_rows = min(block_rows, int(chunk_rows.max()))
        blocks = -(-chunk_rows // block_rows)
        self.chunk = np.repeat(np.arange(len(chunk_rows)), blocks)
        within = np.arange(len(self.chunk)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        self.start = within * block_rows
        self.n_rows = np.minimum(block_rows, chunk_rows[self.chunk] - self.start)
        per_buffer = max(1, buffer_rows // block_rows)
        # Buffers of even size: a small last one would mix badly.
        self.n_buffers = 1 if total <= buffer_rows else -(-len(self.chunk) // per_buffer)
        self._seed = seed
        sizes = [len(part) for part in np.array_split(np.arange(len(self.chunk)), self.n_buffers)]
        self.quality = Quality(self.n_buffers, min(sizes), block_rows, min(total, max(sizes) * block_rows))

    def deal(self, epoch: int) -> list[Int[np.ndarray, " blocks"]]:
        """Numbers of the blocks in each buffer of an epoch, ascending: `row_order` mixes their rows."""
        blocks = np.arange(len(self.chunk))
        if self.n_buffers > 1:
            blocks = np.random.default_rng(child_seed(self._seed, "blocks", epoch)).permutation(blocks)
        return [np.sort(part) for part in np.array_split(blocks, self.n_buffers)]

    def row_order(self, epoch: int, buffer: int, n_rows: int) -> Int[np.ndarray, " rows"]:
        """Order in which the rows of a buffer are shown."""
        return np.random.default_rng(child_seed(self._seed, "rows", epoch, buffer)).permutation(n_rows)


def row_permutation(n_rows: int, *, seed: int, epoch: int) -> Int[np.ndarray, " rows"]:
    """Order of all rows in an epoch."""
    return np.random.default_rng(child_seed(seed, "rows", epoch)).permutation(n_rows)
