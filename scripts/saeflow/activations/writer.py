"""Writing a part of an activation store while the model runs."""

import errno
import hashlib
import logging
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.activations.chunks import as_bytes
from saeflow.activations.journal import Digests, add_to_journal, read_journal, write_journal
from saeflow.activations.layout import (
    ARRAYS,
    JOURNAL,
    MANIFEST,
    RECORD,
    ArrayName,
    DType,
    Part,
    Spec,
    StoreError,
    chunk_path,
    unfinished,
    write_json_whole,
    write_manifest,
)
from saeflow.reproduce import sha256_file

log = logging.getLogger(__name__)

IfExists = Literal["error", "resume", "replace"]
ChunkRows = dict[ArrayName, Tensor]

WAITING_CHUNKS = 2  # full chunks between the model and the disk, at most


class PartWriter:
    """Writes the rows of one job as `<store>/part-<i>`.

    `append` fills a chunk in memory; a full one goes to a background thread, which digests and writes it while the
    model computes the next. The bytes depend on the rows alone, not on how they were cut into appends.

    Use as a context manager: an exception inside leaves an unfinished part, which `if_exists="resume"` continues.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        d: int,
        dtype: DType = "float32",
        chunk_rows: int = 16384,
        source_columns: Sequence[str] = ("row",),
        metadata: Mapping[str, Any] | None = None,
        if_exists: IfExists = "error",
    ) -> None:
        """
        Arguments:
            directory: `<store>/part-<i>`.
            d, dtype, chunk_rows, source_columns, metadata: see `layout.Spec`.
            if_exists: what to do where something lies already: refuse, continue after its last whole chunk (its
                digests are checked on the way), or start over.
        Raises:
            ValueError: a setting that no store can have.
            StoreError: the directory holds something and `if_exists` does not say what to do with it, or what lies
                there was written with other settings.
        """
        self.directory = Path(directory)
        self.spec = Spec(d, dtype, chunk_rows, source_columns, metadata or {})
        self._digests: Digests = {array: [] for array in ARRAYS}
        self._free: list[ChunkRows] = []
        self._filling: ChunkRows | None = None
        self._filled = 0
        self._closed = False
        self._failure: StoreError | None = None
        self._full: queue.Queue[tuple[ChunkRows, int] | None] = queue.Queue(WAITING_CHUNKS)
        self._thread: threading.Thread | None = None
        self._n_rows = 0
        self._prepare(if_exists)

    @property
    def n_rows(self) -> int:
        """Rows taken so far; after a resume, the row from which the caller goes on."""
        return self._n_rows

    def append(
        self,
        rows: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
        source: Int[Tensor, "..."] | Int[np.ndarray, "..."] | None = None,
    ) -> None:
        """Take rows, in order.

        Arguments:
            rows: activations on any device, of any float type; rounded to the store's type.  Shape [n, d].
            source: where each row came from, a column per `source_columns`.  Shape [n, columns], or [n] for one
                column. Without it, and with one column, the running number of the row.
        Raises:
            ValueError: another shape, or a value that is not finite or exceeds the store's type; names the row.
            StoreError: an earlier chunk could not be written (disk full, say); names it.
        """
        self._refuse_after_end()
        x = _tensor(rows).detach()
        if x.ndim != 2 or x.shape[1] != self.spec.d:
            raise ValueError(f"rows: shape {list(x.shape)} must be [n, {self.spec.d}]")
        if len(x) == 0:
            return
        self._refuse_values(x)
        where = self._source(source, len(x))
        taken = 0
        while taken < len(x):
            self._filling = self._filling or self._buffers(pin=x.is_cuda)
            n = min(len(x) - taken, self.spec.chunk_rows - self._filled)
            span = slice(self._filled, self._filled + n)
            self._filling["activations"][span].copy_(x[taken : taken + n])
            self._filling["source"][span].copy_(where[taken : taken + n])
            taken, self._filled, self._n_rows = taken + n, self._filled + n, self._n_rows + n
            if self._filled == self.spec.chunk_rows:
                self._hand_over()

    def close(self) -> Part:
        """Write what is left, then the part's metadata; the part is finished after this and not before.

        Raises:
            StoreError: a chunk or the metadata could not be written; what was written stays, and can be resumed.
        """
        self._refuse_after_end()
        if self._filled:
            for rows in self._filling.values():
                rows[self._filled :] = 0
            self._hand_over()
        self._stop()
        if self._failure:
            raise self._failure
        part = Part(self.directory, self.spec, self._n_rows, {a: tuple(self._digests[a]) for a in ARRAYS})
        try:
            self._finish(part)
        except OSError as error:
            raise self._explain(error, f"{self.directory}: metadata") from error
        return part

    def abort(self) -> None:
        """Stop without finishing: whole chunks stay and can be resumed, rows of the last one are lost."""
        if not self._closed:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        elif not self._closed:
            self.close()

    def _refuse_after_end(self) -> None:
        if self._closed:
            raise StoreError(f"{self.directory}: the writer is closed")
        if self._failure:
            raise self._failure

    def _refuse_values(self, x: Tensor) -> None:
        """One pass finds NaN, infinity and overflow, which would otherwise surface as a broken training run."""
        limit = torch.finfo(self.spec.torch_dtype).max
        low, high = torch.stack(x.aminmax()).tolist()
        if -limit <= low and high <= limit:
            return
        good = (x.double().abs() <= limit).all(dim=1)
        row = int((~good).nonzero()[0])
        raise ValueError(
            f"rows: row {self._n_rows + row} of {self.directory} holds a value that is not finite or is larger than "
            f"{limit:g}, the largest {self.spec.dtype}"
        )

    def _source(self, source: Any, n: int) -> Tensor:
        columns = self.spec.source_columns
        if source is None:
            if len(columns) > 1:
                raise ValueError(f"source: needed, because the store has the columns {', '.join(columns)}")
            return torch.arange(self._n_rows, self._n_rows + n)[:, None]
        where = _tensor(source)
        if where.is_floating_point() or where.is_complex():
            raise ValueError(f"source: {where.dtype} must be integers")
        where = where[:, None] if where.ndim == 1 else where
        if tuple(where.shape) != (n, len(columns)):
            raise ValueError(f"source: shape {list(where.shape)} must be [{n}, {len(columns)}]: {', '.join(columns)}")
        return where

    def _buffers(self, *, pin: bool) -> ChunkRows:
        if self._free:
            return self._free.pop()
        return {
            array: torch.empty(
                self.spec.chunk_rows, self.spec.width(array), dtype=self.spec.element(array), pin_memory=pin
            )
            for array in ARRAYS
        }

    def _hand_over(self) -> None:
        if self._thread is None:
            # A daemon, so that a program which never closes its writer can still end.
            self._thread = threading.Thread(target=self._write_chunks, name=f"write {self.directory}", daemon=True)
            self._thread.start()
        self._full.put((self._filling, self._filled))
        self._filling, self._filled = None, 0

    def _stop(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
        self._free, self._filling = [], None

    def _write_chunks(self) -> None:
        """The background thread: after a failure it only empties the queue, so that `append` never waits on it."""
        while (item := self._full.get()) is not None:
            chunk, n_rows = item
            if self._failure is None:
                try:
                    self._write_chunk(chunk, n_rows)
                except Exception as error:
                    path = chunk_path(self.directory, "activations", len(self._digests["source"]))
                    self._failure = self._explain(error, f"{path.parent}")
                    self._failure.__cause__ = error
            self._free.append(chunk)

    def _write_chunk(self, chunk: ChunkRows, n_rows: int) -> None:
        index = len(self._digests["source"])
        digests = {}
        for array in ARRAYS:
            content = as_bytes(chunk[array])
            path = chunk_path(self.directory, array, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_bytes(path, content)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            digests[array] = hashlib.sha256(content).hexdigest()
        add_to_journal(self.directory, n_rows, digests)
        for array in ARRAYS:
            self._digests[array].append(digests[array])

    def _explain(self, error: Exception, what: str) -> StoreError:
        if not isinstance(error, OSError):
            return StoreError(f"{what}: {error!r}")
        reason = error.strerror or repr(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = sum(self.spec.chunk_bytes(array) for array in ARRAYS)
            free = shutil.disk_usage(self.directory).free
            reason += f" (a chunk takes {needed / 1e6:.3g} MB, {free / 1e6:.3g} MB are free)"
        kept = len(self._digests["source"])
        return StoreError(f"{what}: {reason}; {kept} whole chunks are kept, and if_exists='resume' goes on after them")

    def _prepare(self, if_exists: IfExists) -> None:
        """Make the directory fit for the first row, with a journal whose first line is the spec."""
        finished, begun = self.directory / RECORD, self.directory / JOURNAL
        if if_exists not in ("error", "resume", "replace"):
            raise ValueError(f"if_exists: {if_exists!r} is none of error, resume, replace")
        occupied = self.directory.exists() and any(self.directory.iterdir())
        if occupied and not (finished.is_file() or begun.is_file()):
            raise StoreError(f"{self.directory}: holds something that is no part of a store; name another directory")
        if occupied and if_exists == "error":
            state = "a finished part" if finished.is_file() else unfinished(self.directory)
            raise StoreError(f"{self.directory}: {state}; pass if_exists='resume' or 'replace'")
        if occupied and if_exists == "replace":
            self._invalidate()
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        if occupied and if_exists == "resume":
            self._resume()
        if not self._n_rows:
            write_journal(self.directory, self.spec, self._digests)

    def _resume(self) -> None:
        """Go on after the last whole chunk; of a finished part also its last, partial chunk is kept."""
        spec, digests, n_rows = self._read_finished() or read_journal(self.directory)
        if difference := spec.difference(self.spec):
            raise StoreError(f"{self.directory}: {difference}; what was begun with it cannot be continued")
        for index in range(len(digests["source"])):
            for array in ARRAYS:
                path = chunk_path(self.directory, array, index)
                if not path.is_file() or sha256_file(path) != digests[array][index]:
                    log.warning("%s: not as it was written; the capture goes on from here", path)
                    n_rows = min(n_rows, index * spec.chunk_rows)
        n_whole, n_rest = divmod(n_rows, spec.chunk_rows)
        if n_rest:
            self._filling, self._filled = self._buffers(pin=False), n_rest
            for array, rows in self._filling.items():
                content = np.fromfile(chunk_path(self.directory, array, n_whole), dtype=np.uint8)
                rows.copy_(torch.from_numpy(content).view(rows.dtype).view_as(rows))
        self._n_rows = n_rows
        self._digests = {array: digests[array][:n_whole] for array in ARRAYS}
        write_journal(self.directory, self.spec, self._digests)
        self._invalidate()
        for array in ARRAYS:
            for beyond in (self.directory / array).glob("c/*"):
                if int(beyond.name) >= n_whole:
                    shutil.rmtree(beyond)
        log.info("%s: continued after %d rows", self.directory, n_rows)

    def _invalidate(self) -> None:
        """Take away whatever says "finished", before the first byte changes."""
        for directory in (self.directory, *(self.directory / array for array in ARRAYS)):
            for record in (directory / RECORD, *directory.glob("*.partial")):
                record.unlink(missing_ok=True)

    def _read_finished(self) -> tuple[Spec, Digests, int] | None:
        if not (self.directory / RECORD).is_file():
            return None
        part = Part.read(self.directory)
        return part.spec, {array: list(part.digests[array]) for array in ARRAYS}, part.n_rows

    def _finish(self, part: Part) -> None:
        import zarr  # half a second, which readers need not pay

        for array in ARRAYS:
            width = self.spec.width(array)
            element = str(self.spec.element(array)).removeprefix("torch.")
            of_activations = array == "activations"
            zarr.create_array(
                store=str(self.directory / array),
                shape=(part.n_rows, width),
                chunks=(self.spec.chunk_rows, width),
                dtype="uint16" if element == "bfloat16" else element,
                compressors=None,
                zarr_format=3,
                attributes={"dtype": element} if of_activations else {"columns": list(self.spec.source_columns)},
            )
        attributes = {"saeflow": {**self.spec.record(), **part.record()}}
        write_json_whole(self.directory / RECORD, {"zarr_format": 3, "node_type": "group", "attributes": attributes})
        (self.directory / JOURNAL).unlink()


class StoreWriter(PartWriter):
    """Writes a whole store as its one part, then the manifest: what `ActivationStore.create` returns."""

    def __init__(self, path: Path | str, *, if_exists: IfExists = "error", **spec: Any) -> None:
        """As `PartWriter`, with `path` the store."""
        self.path = Path(path)
        parts = sorted({p.parent for name in (RECORD, JOURNAL) for p in self.path.glob(f"part-*/{name}")})
        self._others = [part for part in parts if part.name != "part-0"]
        if if_exists == "error" and (parts or (self.path / MANIFEST).exists()):
            raise StoreError(
                f"{self.path}: holds a store; pass if_exists='resume' to continue it, 'replace' to start over"
            )
        if self._others and if_exists == "resume":
            raise StoreError(f"{self._others[0]}: the store was written by several jobs; continue each with PartWriter")
        super().__init__(self.path / "part-0", if_exists=if_exists, **spec)

    def _invalidate(self) -> None:
        (self.path / MANIFEST).unlink(missing_ok=True)
        for part in self._others:
            shutil.rmtree(part)
        super()._invalidate()

    def _finish(self, part: Part) -> None:
        super()._finish(part)
        write_manifest(self.path, [part])


def _tensor(values: Any) -> Tensor:
    """Tensor that shares memory, unless the array is read-only, of which torch would warn."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    return torch.as_tensor(values)


def write_bytes(path: Path, content: memoryview) -> None:
    """Write a file without buffering: the content is one block already."""
    with open(path, "wb", buffering=0) as file:
        written = 0
        while written < len(content):
            written += file.write(content[written:])
