"""Rows that lie in chunks: files of a store, or one array in memory."""

import copy
import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from saeflow.activations.layout import ArrayName, Part, Spec, StoreError, chunk_path

HASH_BLOCK = 1 << 20  # bytes: small enough to stay in the cache between reading and hashing


Runs = Sequence[tuple[int, int]]  # first row in the chunk, number of rows


class Chunk(ABC):
    """Some consecutive rows."""

    n_rows: int

    @abstractmethod
    def mapped(self) -> Shaped[Tensor, "rows width"]:
        """All rows, for picking some of them; not to be written to."""

    @abstractmethod
    def read(self, runs: Runs, out: Shaped[Tensor, "n width"]) -> None:
        """Copy runs of rows, one after another, into `out`."""

    @abstractmethod
    def expect(self, runs: Runs) -> None:
        """Say that these rows will be read soon."""

    def head(self, n_rows: int) -> Self:
        """The first rows of it."""
        part = copy.copy(self)
        part.n_rows = n_rows
        return part


class MemoryChunk(Chunk):
    """Rows of an array in memory."""

    def __init__(self, rows: Shaped[Tensor, "rows width"]) -> None:
        self.rows = rows
        self.n_rows = len(rows)

    def mapped(self) -> Shaped[Tensor, "rows width"]:
        return self.rows[: self.n_rows]

    def read(self, runs: Runs, out: Shaped[Tensor, "n width"]) -> None:
        done = 0
        for start, n in runs:
            out[done : done + n].copy_(self.rows[start : start + n])
            done += n

    def expect(self, runs: Runs) -> None:
        pass


class FileChunk(Chunk):
    """One chunk file. It is opened anew for each read, because a large store has more chunks than a process has files.

    Before its first use the file's size is checked, and with `check` its digest. Blocks are read by
    `pread`, whose errors can be named; a page that fails under a memory map kills the process.

    Raises, from any method:
        StoreError: a read error, a truncated file or another digest; names the chunk.
    """

    def __init__(self, path: Path, n_rows: int, spec: Spec, array: ArrayName, *, digest: str, check: bool) -> None:
        self.path = path
        self.n_rows = n_rows
        self._n_bytes = spec.chunk_bytes(array)
        self._width = spec.width(array)
        self._dtype = spec.element(array)
        self._row_bytes = self._width * self._dtype.itemsize
        self._digest = digest
        self._check_digest = check
        self._checked = False
        self._mapped: Tensor | None = None

    def mapped(self) -> Shaped[Tensor, "rows width"]:
        if self._mapped is None:
            self._check()
            n = self.n_rows * self._width
            # Unlike numpy's, torch's memory map does not keep the file open.
            rows = torch.from_file(str(self.path), size=n, dtype=self._dtype)
            self._mapped = rows.view(-1, self._width)
        return self._mapped

    def read(self, runs: Runs, out: Shaped[Tensor, "n width"]) -> None:
        self._check()
        content, done = as_bytes(out), 0
        with self._opened() as file:
            for start, n in runs:
                n_bytes = n * self._row_bytes
                self._fill(content[done : done + n_bytes], file, start * self._row_bytes)
                done += n_bytes

    def expect(self, runs: Runs) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        with self._opened() as file:
            for start, n in runs:
                os.posix_fadvise(file, start * self._row_bytes, n * self._row_bytes, os.POSIX_FADV_WILLNEED)

    def check_digest(self) -> None:
        """Read the whole file and compare its sha256."""
        self._check_size()
        hasher, block = hashlib.sha256(), memoryview(bytearray(HASH_BLOCK))
        with self._opened() as file:
            for offset in range(0, self._n_bytes, HASH_BLOCK):
                content = block[: self._n_bytes - offset]
                self._fill(content, file, offset)
                hasher.update(content)
        if hasher.hexdigest() != self._digest:
            raise StoreError(
                f"{self.path}: sha256 {hasher.hexdigest()} is not the manifest's {self._digest}; the chunk changed "
                "after it was written"
            )

    def _check(self) -> None:
        if self._checked:
            return
        if self._check_digest:
            self.check_digest()
        else:
            self._check_size()
        self._checked = True

    def _check_size(self) -> None:
        with self._opened() as file:
            size = os.fstat(file).st_size
        if size != self._n_bytes:
            raise self._truncated(size)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file's number; an error of the file system becomes one that names the chunk."""
        try:
            file = os.open(self.path, os.O_RDONLY)
            try:
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or error}") from error

    def _fill(self, target: memoryview, file: int, offset: int) -> None:
        done = 0
        while done < len(target):
            n = os.preadv(file, [target[done:]], offset + done)
            if n == 0:
                raise self._truncated(offset + done)
            done += n

    def _truncated(self, size: int) -> StoreError:
        return StoreError(f"{self.path}: {size} bytes, a whole chunk has {self._n_bytes}")


class ChunkedRows:
    """The rows [n, width] of all chunks, in order."""

    def __init__(self, chunks: Sequence[Chunk], width: int, dtype: torch.dtype) -> None:
        self.chunks = chunks
        self.width = width
        self.dtype = dtype
        self.starts = np.concatenate([[0], np.cumsum([chunk.n_rows for chunk in chunks], dtype=np.int64)])

    @classmethod
    def of_parts(cls, parts: Sequence[Part], array: ArrayName, *, check_digests: bool) -> "ChunkedRows":
        """One array of a store."""
        spec = parts[0].spec
        chunks = [
            FileChunk(
                chunk_path(part.directory, array, index),
                min(spec.chunk_rows, part.n_rows - index * spec.chunk_rows),
                spec,
                array,
                digest=digest,
                check=check_digests,
            )
            for part in parts
            for index, digest in enumerate(part.digests[array])
        ]
        return cls(chunks, spec.width(array), spec.element(array))

    def without_tails(self, share: float) -> "ChunkedRows":
        """Every chunk without that share of its rows, the last ones, rounded down to whole ones."""
        chunks = [chunk.head(chunk.n_rows - math.floor(share * chunk.n_rows)) for chunk in self.chunks]
        return ChunkedRows(chunks, self.width, self.dtype)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def empty(self, n: int, *, pin: bool = False) -> Shaped[Tensor, "n width"]:
        """Memory for n rows."""
        return torch.empty(n, self.width, dtype=self.dtype, pin_memory=pin)

    def gather(self, indices: Int[np.ndarray, " n"], out: Shaped[Tensor, "n width"]) -> None:
        """Copy rows by number into `out`, in the order asked for.

        Raises:
            IndexError: a number outside [0, n).
            StoreError: see `FileChunk`.
        """
        if not len(indices):
            return
        if not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"rows: {indices.min()} to {indices.max()} must lie in 0 to {len(self) - 1}")
        chunk = np.searchsorted(self.starts, indices, side="right") - 1
        # Chunk by chunk, then back into the order asked for.
        order = np.argsort(chunk, kind="stable")
        local = torch.from_numpy((indices - self.starts[chunk])[order])
        touched, firsts = np.unique(chunk[order], return_index=True)
        in_order = np.array_equal(order, np.arange(len(order)))
        picked = out if in_order else torch.empty_like(out)
        for c, first, last in zip(touched, firsts, [*firsts[1:], len(indices)], strict=True):
            torch.index_select(self.chunks[c].mapped(), 0, local[first:last], out=picked[first:last])
        if not in_order:
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            torch.index_select(picked, 0, torch.from_numpy(back), out=out)

    def read(self, start: int, out: Shaped[Tensor, "n width"]) -> None:
        """Copy the rows from `start` on into `out`, across chunks."""
        done = 0
        while done < len(out):
            c = int(np.searchsorted(self.starts, start + done, side="right")) - 1
            n = min(len(out) - done, int(self.starts[c + 1]) - start - done)
            self.chunks[c].read([(start + done - int(self.starts[c]), n)], out[done : done + n])
            done += n


def as_bytes(rows: Shaped[Tensor, "n width"]) -> memoryview:
    """The memory of rows."""
    return memoryview(rows.view(torch.uint8).numpy()).cast("B")
