"""What lies where in an activation store, and the records that describe it.

    <store>/manifest.json                    shape, dtype, metadata; rows and digests of every part
    <store>/part-<i>/zarr.json               zarr v3 group; its attribute `saeflow` is the part's record
    <store>/part-<i>/activations/c/<j>/0     chunk j: [chunk_rows, d], uncompressed, little-endian
    <store>/part-<i>/source/c/<j>/0          chunk j: [chunk_rows, columns], int64: where each row came from
    <store>/part-<i>/journal.jsonl           only while the part is being written

The group's zarr.json and the manifest come last, so whatever lacks one of them is unfinished.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch

from saeflow.reproduce import write_json

MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
RECORD = "zarr.json"
VERSION = 1

DType = Literal["float32", "float16", "bfloat16"]
ArrayName = Literal["activations", "source"]
ARRAYS: tuple[ArrayName, ...] = get_args(ArrayName)


class StoreError(RuntimeError):
    """A store that cannot be read or written as asked; the message names the chunk, part or setting."""


@dataclass(frozen=True)
class Spec:
    """What all parts of one store share.

    Arguments:
        d: width of an activation vector.
        dtype: number type on disk. bfloat16 is stored as uint16, because zarr has no such type.
        chunk_rows: rows per chunk file.
        source_columns: names of the integers that say where a row came from.
        metadata: anything that JSON can hold, e.g. model and hook point.
    Raises:
        ValueError: a setting that no store can have.
    """

    d: int
    dtype: DType = "float32"
    chunk_rows: int = 16384
    source_columns: Sequence[str] = ("row",)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("d", "chunk_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.dtype not in get_args(DType):
            raise ValueError(f"dtype: {self.dtype!r} is none of {', '.join(get_args(DType))}")
        if isinstance(self.source_columns, str) or not self.source_columns:
            raise ValueError(f"source_columns: {self.source_columns!r} must be a sequence of one or more names")
        object.__setattr__(self, "source_columns", tuple(self.source_columns))
        try:
            # What is read back must compare equal, so tuples become lists here already.
            object.__setattr__(self, "metadata", json.loads(json.dumps(dict(self.metadata), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata: JSON cannot hold it ({error})") from None

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def width(self, array: ArrayName) -> int:
        """Columns of an array."""
        return self.d if array == "activations" else len(self.source_columns)

    def element(self, array: ArrayName) -> torch.dtype:
        """Number type of an array in memory."""
        return self.torch_dtype if array == "activations" else torch.int64

    def chunk_bytes(self, array: ArrayName) -> int:
        return self.chunk_rows * self.width(array) * self.element(array).itemsize

    def n_chunks(self, n_rows: int) -> int:
        return math.ceil(n_rows / self.chunk_rows)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "source_columns": list(self.source_columns)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})

    def difference(self, other: "Spec") -> str | None:
        """The first setting in which two specs differ, in words."""
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {mine!r} and not {theirs!r}"
        return None


@dataclass(frozen=True)
class Part:
    """One finished part: what one job wrote.

    Arguments:
        directory: `<store>/part-<i>`.
        spec: what it shares with the other parts.
        n_rows: rows in it.
        digests: sha256 of each chunk file, in order, by array.
    """

    directory: Path
    spec: Spec
    n_rows: int
    digests: Mapping[ArrayName, tuple[str, ...]]

    @classmethod
    def read(cls, directory: Path | str) -> Self:
        """The record of a finished part.

        Raises:
            StoreError: no such part, or an unfinished one.
        """
        directory = Path(directory)
        path = directory / RECORD
        if not path.is_file():
            raise StoreError(f"{directory}: {unfinished(directory)}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))["attributes"]["saeflow"]
            return cls._of(directory, Spec.from_record(record), record)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not the record of a part ({error!r})") from error

    @classmethod
    def _of(cls, directory: Path, spec: Spec, record: Mapping[str, Any]) -> Self:
        digests = {array: tuple(record["sha256"][array]) for array in ARRAYS}
        for array in ARRAYS:
            if len(digests[array]) != spec.n_chunks(record["rows"]):
                raise ValueError(f"{len(digests[array])} digests of {array} for {record['rows']} rows")
        return cls(directory, spec, record["rows"], digests)

    def record(self) -> dict[str, Any]:
        """Rows and digests, for JSON."""
        return {"rows": self.n_rows, "sha256": {array: list(self.digests[array]) for array in ARRAYS}}


def chunk_path(part: Path, array: ArrayName, index: int) -> Path:
    """File of one chunk."""
    return part / array / "c" / str(index) / "0"


def rows_in_chunk(spec: Spec, n_rows: int, index: int) -> int:
    """Rows of a part's chunk that count; the last chunk is padded to its full size on disk."""
    return min(spec.chunk_rows, n_rows - index * spec.chunk_rows)


def unfinished(directory: Path) -> str:
    """Why there is nothing to read at a directory, and what to do."""
    journals = sorted([*directory.glob(JOURNAL), *directory.glob(f"part-*/{JOURNAL}")])
    if journals:
        n_chunks = sum(max(0, len(journal.read_text(encoding="utf-8").splitlines()) - 1) for journal in journals)
        return f"unfinished, {n_chunks} whole chunks; continue it with if_exists='resume' or start over with 'replace'"
    if any(directory.glob(f"part-*/{RECORD}")):
        return f"no {MANIFEST} beside the parts; write_manifest makes it once all parts are there"
    return "no activation store here" if directory.is_dir() else "no such directory"


def write_manifest(directory: Path | str, parts: Sequence[Part]) -> Path:
    """Gather the parts of one store, in the order of their rows.

    Arguments:
        directory: the store; holds every part's directory.
        parts: what each writer returned, or `Part.read` of its directory.
    Returns:
        the path of the manifest.
    Raises:
        StoreError: no part, a part twice or from elsewhere, or parts that do not fit one another.
    """
    directory = Path(directory)
    if not parts:
        raise StoreError(f"{directory}: a store needs one part or more")
    seen: set[Path] = set()
    for part in parts:
        if part.directory.resolve().parent != directory.resolve() or part.directory in seen:
            raise StoreError(f"{part.directory}: each part must lie in {directory}, and be given once")
        seen.add(part.directory)
        if difference := part.spec.difference(parts[0].spec):
            raise StoreError(f"{part.directory}: {difference}, as {parts[0].directory.name} has it")
    spec = parts[0].spec
    content = {
        "format": "saeflow activation store",
        "version": VERSION,
        "shape": [sum(part.n_rows for part in parts), spec.d],
        **{name: value for name, value in spec.record().items() if name != "d"},
        "parts": [{"name": part.directory.name, **part.record()} for part in parts],
    }
    return write_json_whole(directory / MANIFEST, content)


def read_manifest(path: Path | str) -> list[Part]:
    """Parts of the store at a directory or at the path of its manifest.

    Raises:
        StoreError: no store, an unfinished one, or a manifest that is not one.
    """
    path = Path(path)
    path = path if path.name == MANIFEST else path / MANIFEST
    if not path.is_file():
        raise StoreError(f"{path.parent}: {unfinished(path.parent)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, this library reads {VERSION}")
        n_rows, d = content["shape"]
        spec = Spec.from_record({**content, "d": d})
        parts = [Part._of(path.parent / _part_name(record["name"]), spec, record) for record in content["parts"]]
        if sum(part.n_rows for part in parts) != n_rows:
            raise ValueError(f"shape says {n_rows} rows, the parts say {sum(part.n_rows for part in parts)}")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not the manifest of an activation store ({error!r})") from error
    return parts


def _part_name(name: str) -> str:
    """The name, unless it leads out of the store: a manifest may be somebody else's."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"part {name!r} is not a name in the store")
    return name


def write_json_whole(path: Path, content: Any) -> Path:
    """Write JSON so that the file is either whole or not there."""
    partial = path.with_name(f"{path.name}.partial")
    write_json(partial, content)
    os.replace(partial, path)
    return path
