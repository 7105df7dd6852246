"""Tokens of documents, packed into contexts of one length, of which each knows its document and place.

A context begins with the start token; behind it stand the tokens of a document, from where the context before it broke
off. Where a document ends inside a context, another start token and the next document follow: nothing is padded, and no
boundary is lost. Text tokens have their place in the document as `position`, start tokens have -1. So have the special
tokens that a document spells out (`</s>`, `<|endoftext|>`, marks of a chat): the model reads them, they are no text.

    <file>.parquet     a row per context: tokens, document, position, lists of `context_size` numbers
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int
from pyarrow import parquet

from saeflow.datasets.text_files import TextError

_META = b"saeflow"
_GROUP = 1024  # contexts in memory
NO_TEXT = -1
COLUMNS = ("tokens", "document", "position")


@dataclass(frozen=True)
class Contexts:
    """Some contexts.

    Arguments:
        tokens: ids.  Shape [n, context_size].
        document: number of the document that each token belongs to.  Shape [n, context_size].
        position: place of each token in its document, from 0; -1 for special tokens.  Shape [n, context_size].
    """

    tokens: Int[np.ndarray, "n context"]
    document: Int[np.ndarray, "n context"]
    position: Int[np.ndarray, "n context"]

    @classmethod
    def concatenate(cls, parts: Iterable["Contexts"]) -> Self:
        """All in memory."""
        parts = list(parts)
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_text(self) -> Bool[np.ndarray, "n context"]:
        """Tokens of documents: all but special tokens, and but the first of each context, whose activations have
        another norm than all others."""
        mask = self.position != NO_TEXT
        mask[:, 0] = False
        return mask


def pack(
    documents: Iterable[tuple[int, str]],
    encode: Callable[[list[str]], list[list[int]]],
    *,
    start: int | None,
    context_size: int,
    n_tokens: int | None,
    encoded_at_once: int = 256,
) -> Iterator[Contexts]:
    """Contexts of documents, one by one in groups, until they hold a number of text tokens.

    Arguments:
        documents: number and text.
        encode: ids of several texts. Those in its attribute `special`, if it has one, are no text.
        start: id of the start token, no text either; a document that begins with it gets no other. Without one,
            documents follow one another and only `document` tells them apart.
        context_size: tokens per context.
        n_tokens: text tokens asked for, the last context is filled; None for all that fill a context.
        encoded_at_once: documents per call of `encode`.
    Raises:
        TextError: the documents have fewer tokens, or do not fill a single context.
    """
    found, packer = 0, _Packer(start, frozenset(getattr(encode, "special", ())) | {start}, context_size)
    for contexts in _packed(documents, encode, packer, encoded_at_once):
        if n_tokens is None:
            found += int(contexts.is_text.sum())
            yield contexts
            continue
        so_far = found + contexts.is_text.sum(1).cumsum()
        n = int(np.searchsorted(so_far, n_tokens)) + 1
        found = int(so_far[:n][-1])
        yield Contexts(contexts.tokens[:n], contexts.document[:n], contexts.position[:n])
        if found >= n_tokens:
            return
    if n_tokens is None and not found:
        raise TextError(
            f"language.text: the {packer.documents} of this split do not fill a context of {context_size} tokens with "
            "text; give more text, or hold out another share"
        )
    if n_tokens is not None:
        refuse_fewer(found, n_tokens, packer.documents)


def refuse_fewer(found: int, n_tokens: int, documents: str) -> None:
    """Refuse a split that has fewer tokens than are asked for.

    Arguments:
        found: tokens, at most, that the split has.
        documents: in words, how many there are.
    Raises:
        TextError: says by how much to lower them.
    """
    if found < n_tokens:
        share = 100 * found // n_tokens
        lower = f", or lower train_tokens and held_out_tokens alike, to {share} %" if share else ""
        raise TextError(
            f"language.text: {n_tokens:,} tokens are asked for, the {documents} of this split have {found:,}; "
            f"give more text{lower}. Documents are dealt whole, in proportion to these two; language.text.separator "
            "divides those of .txt files"
        )


def _packed(
    documents: Iterable[tuple[int, str]],
    encode: Callable[[list[str]], list[list[int]]],
    packer: "_Packer",
    encoded_at_once: int,
) -> Iterator[Contexts]:
    """Groups of whole contexts until the documents end."""
    for numbers, texts in _batches(documents, encoded_at_once):
        for number, ids in zip(numbers, encode(texts), strict=True):
            packer.add(number, ids)
        if len(packer) >= _GROUP:
            yield packer.take()
    if len(packer):
        yield packer.take()


def _batches(documents: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[list[int], list[str]]]:
    numbers, texts = [], []
    for number, text in documents:
        numbers.append(number)
        texts.append(text)
        if len(texts) == size:
            yield numbers, texts
            numbers, texts = [], []
    if texts:
        yield numbers, texts


class _Packer:
    """Fills contexts."""

    def __init__(self, start: int | None, special: frozenset[int | None], size: int) -> None:
        self._start, self._special, self._size = start, special, size
        self._columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._n_documents = 0

    def __len__(self) -> int:
        """Whole contexts."""
        return len(self._columns[0]) // self._size

    def add(self, number: int, ids: list[int]) -> None:
        self._n_documents += 1
        tokens, document, position = self._columns
        places = [NO_TEXT if id_ in self._special else place for place, id_ in enumerate(ids)]
        done, new = 0, True
        while done < len(ids):
            if self._start not in (None, ids[done]) and (new or len(tokens) % self._size == 0):
                tokens.append(self._start)
                document.append(number)
                position.append(NO_TEXT)
                new = False
                continue
            new = False
            n = min(len(ids) - done, self._size - len(tokens) % self._size)
            tokens += ids[done : done + n]
            document += [number] * n
            position += places[done : done + n]
            done += n

    @property
    def documents(self) -> str:
        """How many there were, in words."""
        return f"{self._n_documents:,} document{'' if self._n_documents == 1 else 's'}"

    def take(self) -> Contexts:
        """All whole contexts; what is left over stays."""
        n = len(self) * self._size
        arrays = [np.array(column[:n], dtype=np.int64).reshape(-1, self._size) for column in self._columns]
        for column in self._columns:
            del column[:n]
        return Contexts(*arrays)


def write(path: Path, contexts: Iterable[Contexts], *, context_size: int, start: int | None) -> None:
    """Write contexts, a group at a time."""
    field = pa.list_(pa.int32(), context_size)
    schema = pa.schema([("tokens", field), ("document", pa.list_(pa.int64(), context_size)), ("position", field)])
    meta = {"context_size": context_size, "start": start}
    schema = schema.with_metadata({_META: json.dumps(meta, sort_keys=True)})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in contexts:
            columns = [
                pa.FixedSizeListArray.from_arrays(pa.array(array.ravel(), kind.type.value_type), context_size)
                for array, kind in zip((group.tokens, group.document, group.position), schema, strict=True)
            ]
            writer.write_table(pa.table(columns, schema))


class TokenFile:
    """Contexts on disk, read a group at a time."""

    def __init__(self, path: Path, n_contexts: int, context_size: int, start: int | None) -> None:
        """Use `open`."""
        self._path = path
        self.n_contexts = n_contexts
        self.context_size = context_size
        self.start = start

    @classmethod
    def open(cls, path: Path) -> Self:
        """A file that `write` made.

        Raises:
            TextError: it is another file.
        """
        schema, n = parquet.read_schema(path), parquet.read_metadata(path).num_rows
        if _META not in (schema.metadata or {}):
            raise TextError(f"{path}: not a file of contexts")
        meta = json.loads(schema.metadata[_META])
        return cls(path, n, meta["context_size"], meta["start"])

    def __len__(self) -> int:
        return self.n_contexts

    def text_tokens(self) -> Int[np.ndarray, " n_contexts"]:
        """Number of text tokens of each context."""
        whole = range(self.n_contexts)
        counts = [(part["position"][:, 1:] != NO_TEXT).sum(1) for part in self._groups(whole, ("position",))]
        return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)

    def batches(self, size: int, contexts: range | None = None) -> Iterator[Contexts]:
        """Contexts in order, `size` at a time, the last batch may be shorter.

        Arguments:
            contexts: a run of them, if not all.
        """
        left: dict[str, np.ndarray] = {}
        for group in self._groups(range(self.n_contexts) if contexts is None else contexts, COLUMNS):
            left = {name: np.concatenate([left[name], group[name]]) if left else group[name] for name in COLUMNS}
            n_whole = len(left["tokens"]) // size * size
            for start in range(0, n_whole, size):
                yield Contexts(*(left[name][start : start + size] for name in COLUMNS))
            left = {name: array[n_whole:] for name, array in left.items()}
        if left and len(left["tokens"]):
            yield Contexts(*(left[name] for name in COLUMNS))

    def _groups(self, contexts: range, columns: tuple[str, ...]) -> Iterator[dict[str, Int[np.ndarray, "n context"]]]:
        """Columns of the contexts asked for, as they were written: a group at a time."""
        with parquet.ParquetFile(self._path) as file:
            start = 0
            for i in range(file.num_row_groups):
                stop = start + file.metadata.row_group(i).num_rows
                inside = slice(max(contexts.start, start) - start, min(contexts.stop, stop) - start)
                if inside.start < inside.stop:
                    group = file.read_row_group(i, list(columns))
                    flat = {name: group[name].combine_chunks().flatten().to_numpy() for name in columns}
                    yield {
                        name: values.astype(np.int64).reshape(-1, self.context_size)[inside]
                        for name, values in flat.items()
                    }
                start = stop
