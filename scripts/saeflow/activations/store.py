"""An activation store as its users see it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.activations.batches import Batches, Shuffle, make_order
from saeflow.activations.chunks import ChunkedRows, FileChunk, MemoryChunk
from saeflow.activations.layout import ARRAYS, DType, Spec, StoreError, read_manifest
from saeflow.activations.writer import IfExists, StoreWriter

BLOCK_BYTES = 1 << 16  # smaller blocks mix better; half the size would cost a tenth more time
BUFFER_BYTES = 1 << 27

Indices = Int[np.ndarray, " n"] | Int[Tensor, " n"] | Sequence[int] | slice


class ActivationStore:
    """Activation vectors [n, d] on disk or in memory, and where each came from."""

    def __init__(self, spec: Spec, rows: ChunkedRows, source: ChunkedRows, *, identity: str) -> None:
        """Use `create`, `open` or `from_array`."""
        self._spec = spec
        self._rows = rows
        self._source = source
        self._identity = identity

    @staticmethod
    def create(
        path: Path | str,
        d: int,
        dtype: DType = "float32",
        chunk_rows: int = 16384,
        metadata: Mapping[str, Any] | None = None,
        *,
        source_columns: Sequence[str] = ("row",),
        if_exists: IfExists = "error",
    ) -> StoreWriter:
        """Begin a store; `append` to what is returned and `close` it, or use it in a `with` block.

        Jobs that write one store together use `PartWriter` and `write_manifest`.

        Arguments:
            path: directory of the store.
            d: width of an activation vector.
            dtype: number type on disk: float32, float16 or bfloat16.
            chunk_rows: rows per chunk file; 8 to 64 MB a chunk is a good size.
            metadata: anything that JSON can hold: model, hook point, ...
            source_columns: names of the integers that say where a row came from, e.g. ("document", "position").
            if_exists: "resume" continues an unfinished store after its last whole chunk, from row `writer.n_rows` of
                the input, or appends to a finished one; "replace" starts over; "error" refuses.
        Raises:
            ValueError: a setting that no store can have.
            StoreError: see `if_exists`.
        """
        return StoreWriter(
            path,
            d=d,
            dtype=dtype,
            chunk_rows=chunk_rows,
            source_columns=source_columns,
            metadata=metadata,
            if_exists=if_exists,
        )

    @classmethod
    def open(cls, path: Path | str, *, check_digests: bool = True) -> Self:
        """Open a finished store.

        Arguments:
            path: its directory or manifest.
            check_digests: compare each chunk with its digest before its first use. This reads a chunk whole (about
                0.6 s of CPU per GB, once); without it only sizes are checked.
        Raises:
            StoreError: no store, or an unfinished one. Reading raises it for a read error, a truncated chunk or
                another digest, and names the chunk.
        """
        parts = read_manifest(path)
        rows, source = (ChunkedRows.of_parts(parts, array, check_digests=check_digests) for array in ARRAYS)
        # Of the chunks alone: a stream goes on although other jobs wrote the same chunks.
        digests = {array: [digest for part in parts for digest in part.digests[array]] for array in ARRAYS}
        chunks = json.dumps([np.diff(rows.starts).tolist(), digests], sort_keys=True)
        return cls(parts[0].spec, rows, source, identity=hashlib.sha256(chunks.encode()).hexdigest())

    @classmethod
    def from_array(
        cls,
        rows: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
        source: Int[Tensor, "n columns"] | Int[np.ndarray, "n columns"] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        source_columns: Sequence[str] = ("row",),
    ) -> Self:
        """A store in memory, with the array's own number type; nothing is copied.

        Arguments:
            rows: activations.  Shape [n, d].
            source: where each row came from; without it, the number of the row.  Shape [n, columns].
            metadata, source_columns: as in `create`.
        Raises:
            ValueError: another shape, or a number type that a store cannot have.
        """
        x = torch.as_tensor(rows).detach().cpu()
        where = torch.arange(len(x))[:, None] if source is None else torch.as_tensor(source).to("cpu", torch.int64)
        if x.ndim != 2 or tuple(where.shape) != (len(x), len(source_columns)):
            raise ValueError(
                f"rows, source: shapes {list(x.shape)}, {list(where.shape)} must be [n, d], [n, {len(source_columns)}]"
            )
        spec = Spec(x.shape[1], str(x.dtype).removeprefix("torch."), max(1, len(x)), source_columns, metadata or {})
        arrays = (ChunkedRows([MemoryChunk(a)] if len(a) else [], a.shape[1], a.dtype) for a in (x, where))
        return cls(spec, *arrays, identity="in memory")

    def split(self, share: float) -> tuple[Self, Int[Tensor, " n"]]:
        """Set rows aside, from all over the store: the last ones of every chunk. Nothing is copied.

        Arguments:
            share: of the rows that are set aside; rounded down in every chunk.
        Returns:
            The others as a store of their own, and the numbers that those set aside have in this one.
        Raises:
            ValueError: a share outside [0, 1).
        """
        if not 0 <= share < 1:
            raise ValueError(f"share: {share} must lie in [0, 1)")
        rows, source = self._rows.without_tails(share), self._source.without_tails(share)
        ends = zip(self._rows.starts[:-1] + np.diff(rows.starts), self._rows.starts[1:], strict=True)
        aside = torch.cat([torch.arange(0), *(torch.arange(first, last) for first, last in ends)])
        return type(self)(self._spec, rows, source, identity=f"{self._identity}, {len(rows)} rows"), aside

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return len(self._rows), self._spec.d

    @property
    def dtype(self) -> DType:
        """Number type as stored; what is read is float32."""
        return self._spec.dtype

    @property
    def identity(self) -> str:
        """Of what the store holds; "in memory" for an array's."""
        return self._identity

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._spec.metadata

    @property
    def source_columns(self) -> tuple[str, ...]:
        return tuple(self._spec.source_columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        n, d = self.shape
        return f"ActivationStore({n} x {d}, {self.dtype}, {dict(self.metadata)})"

    def rows(self, indices: Indices, device: torch.device | str = "cpu") -> Float[Tensor, "n d"]:
        """Activations of some rows, in the order asked for, as float32.

        Raises:
            IndexError: a number outside [0, n).
            StoreError: see `open`.
        """
        return self._pick(self._rows, indices).to(device).to(torch.float32)

    def source(self, indices: Indices = slice(None)) -> Int[Tensor, "n columns"]:
        """Where some rows came from: a column per `source_columns`.

        Raises as `rows` does.
        """
        return self._pick(self._source, indices)

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        shuffle: Shuffle | None = "chunks",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        block_bytes: int = BLOCK_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> Batches:
        """Stream batches [batch_size, d]; a given seed gives the same batches.

        Arguments:
            batch_size: rows per batch.
            seed: of the shuffle.
            steps: batches in all, over as many epochs as they take. Give this or `epochs`; without both, one epoch.
            epochs: times that every row is shown; the last batch may be shorter.
            shuffle: "chunks" streams and mixes in a buffer (how well: `shuffle`, and `quality` of what is returned);
                "rows" is one permutation of all rows; None keeps the order.
            device: where batches go; to a GPU by way of pinned memory, without waiting. The buffer of "chunks" is in
                the GPU's memory, twice if the store does not fit into one.
            dtype: number type of batches.
            block_bytes, buffer_bytes: size of the consecutive pieces that "chunks" reads, and of its buffer.
        Returns:
            an iterator; its `state_dict` and `load_state_dict` take up an interrupted run at the same batch.
        Raises:
            ValueError: settings that contradict one another.
            StoreError: the store is empty; or see `open`, while iterating.
        """
        if steps is not None and epochs is not None:
            raise ValueError(f"steps, epochs: give one of them, not {steps} and {epochs}")
        for name, value in (("batch_size", batch_size), ("steps", steps), ("epochs", epochs)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} must be at least 1")
        if not len(self):
            raise StoreError("no rows to draw batches from: the store is empty")
        order, quality = make_order(
            self._rows, shuffle, seed=seed, device=device, block_bytes=block_bytes, buffer_bytes=buffer_bytes
        )
        settings = {
            "store": self._identity,
            "shape": list(self.shape),
            "batch_size": batch_size,
            "seed": seed,
            "shuffle": shuffle,
            "block_bytes": block_bytes,
            "buffer_bytes": buffer_bytes,
        }
        return Batches(
            self._rows,
            batch_size,
            n_rows=steps * batch_size if steps is not None else (epochs or 1) * len(self),
            order=order,
            device=device,
            dtype=dtype,
            settings=settings,
            quality=quality,
        )

    def place(self, row: int) -> str:
        """Where a row lies and what it came from, for a message: its chunk, its number in there, its source."""
        i = int(np.searchsorted(self._rows.starts, row, side="right")) - 1
        chunk = self._rows.chunks[i]
        file = chunk.path if isinstance(chunk, FileChunk) else f"activations in memory {dict(self.metadata)}"
        source = ", ".join(map("{} {}".format, self.source_columns, self.source([row])[0].tolist()))
        return f"{file}: row {row - int(self._rows.starts[i])} ({source})"

    def verify(self) -> None:
        """Compare every chunk with its digest.

        Raises:
            StoreError: names each chunk that is missing, truncated, unreadable or changed.
        """
        problems = []
        for chunk in (*self._rows.chunks, *self._source.chunks):
            if isinstance(chunk, FileChunk):
                try:
                    chunk.check_digest()
                except StoreError as error:
                    problems.append(str(error))
        if problems:
            raise StoreError("\n".join(problems))

    def _pick(self, array: ChunkedRows, indices: Indices) -> Tensor:
        if isinstance(indices, slice):
            start, stop, step = indices.indices(len(self))
            if step == 1:
                out = array.empty(max(0, stop - start))
                array.read(start, out)
                return out
            indices = range(start, stop, step)
        numbers = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise IndexError(f"indices: shape {list(numbers.shape)}, {numbers.dtype} must be a list of row numbers")
        out = array.empty(len(numbers))
        array.gather(numbers.astype(np.int64, copy=False), out)
        return out
