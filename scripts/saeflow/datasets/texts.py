"""Documents of text: read from a folder or the Hugging Face hub, kept as one Parquet file, dealt into two splits.

The file has a row per document, `document` (its number) and `text`; everything after reads only this file, in order and
without holding it in memory.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
from pyarrow import parquet

from saeflow.datasets.text_files import LONGEST, MARK, TextError, lines, refuse_pointer
from saeflow.reproduce import child_seed

log = logging.getLogger(__name__)

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SCHEMA = pa.schema([("document", pa.int64()), ("text", pa.string())])
_GROUP = 4096  # documents in memory
_CHARACTERS = 1 << 25  # in memory, and one document more
_CHARACTERS_PER_TOKEN = 8  # of a folder or a data set is taken what is enough for any tokenizer
_LINE = "\n"  # the separator of files with a document per line
_SUFFIXES = (".txt", ".parquet")


def write(path: Path, texts: Iterable[str]) -> int:
    """Write documents, numbered in their order; empty ones are left out.

    Returns:
        the number of documents.
    Raises:
        TextError: none at all, or one that is no valid Unicode.
    """
    n, size, waiting = 0, 0, []
    with parquet.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:

        def flush() -> None:
            numbers = pa.array(range(n - len(waiting), n), pa.int64())
            writer.write_table(pa.table([numbers, pa.array(waiting, pa.string())], _SCHEMA))
            waiting.clear()

        for text in _not_empty(texts):
            if not text.isascii() and (found := _surrogate(text)) is not None:
                raise TextError(f"language.text: document {n} has half a surrogate pair at character {found}; mend it")
            waiting.append(text)
            n, size = n + 1, size + len(text)
            if len(waiting) == _GROUP or size >= _CHARACTERS:
                flush()
                size = 0
        if waiting:
            flush()
    if not n:
        raise TextError("language.text: no document is in it, or all are empty; name a folder, or a column, with text")
    return n


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    return (text for text in texts if text.strip())


def _surrogate(text: str) -> int | None:
    """Place of the first character that no encoding has, if any."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def read(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each document of a file that `write` made."""
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):  # batches would join several
            for batch in file.iter_batches(_GROUP, row_groups=[group]):
                yield from zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True)


def split_of(document: int, seed: int, held_out_share: float) -> Split:
    """The split that a document is in: drawn for each by itself, so that no token of one is in both."""
    return "held_out" if child_seed(seed, "split", document) < held_out_share * 2**63 else "train"


def check_splits(n_documents: int, n_files: int, text: Any, seed: int) -> None:
    """Refuse documents so few that a split has none.

    Arguments:
        n_documents: as `write` counts them.
        n_files: that they came from.
        text: section `language.text`.
        seed: root of the draw of the splits.
    Raises:
        TextError: says how many documents were found, and which key divides them.
    """
    dealt = Counter(split_of(document, seed, text.held_out_share) for document in range(n_documents))
    if missing := [split for split in SPLITS if not dealt[split]]:
        raise TextError(
            f"{_counted(n_documents, 'document')} found in {_source(text, n_files)}, none of which falls to the split "
            f"{missing[0]!r}: documents are dealt whole; {what_divides(text)}"
        )


def _source(text: Any, n_files: int) -> str:
    if text.dataset:
        return f"{text.dataset} (language.text.dataset)"
    return f"{_counted(n_files, 'file')} (language.text.folder)" if text.folder else "the embedded corpus"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def what_divides(text: Any) -> str:
    """What a user changes to have more documents."""
    if not (text.folder or text.dataset):
        return "raise language.text.documents"
    rows = "of a Parquet file or a data set, each row is one"
    return (
        f"language.text.separator, now {text.separator!r}, names the line that stands between documents of a .txt file "
        f'("\\n" makes each line a document, "\\n\\n" divides at empty lines); {rows}'
    )


def files_of(folder: Path | str) -> list[Path]:
    """Text and Parquet files of a folder, sorted by name; hidden files are none.

    Raises:
        TextError: no such folder, none in it, or both kinds.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TextError(f"language.text.folder: {folder} is no folder")
    shown = (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    found = sorted(path for path in shown if path.suffix.lower() in _SUFFIXES)
    kinds = {path.suffix.lower() for path in found}
    if len(kinds) != 1:
        what = "both .txt and .parquet files" if kinds else "neither .txt nor .parquet files"
        raise TextError(f"language.text.folder: {folder} has {what}; expected files of one kind")
    return found


def check(files: Iterable[Path], column: str) -> None:
    """Refuse files that hold no text, as far as that is known without reading it.

    Raises:
        TextError: all are empty; or a Parquet file is none, or lacks the column, or holds no text in it.
    """
    files = list(files)
    if not any(path.stat().st_size for path in files):
        raise TextError(f"language.text.folder: {files[0].parent} has no text in its {_counted(len(files), 'file')}")
    for path in files:
        if path.suffix.lower() == ".parquet":
            refuse_pointer(path)
            try:
                _check_column(path, parquet.read_schema(path), column)
            except (pa.ArrowException, OSError) as error:
                raise TextError(f"{path}: no whole Parquet file; fetch or write it again ({error})") from None


def _check_column(path: Path, schema: pa.Schema, column: str) -> None:
    if schema.names.count(column) != 1:
        what = "several columns" if column in schema.names else "no column"
        raise TextError(f"{path}: has {what} {column!r}, but {', '.join(schema.names)}: set language.text.column")
    kind = schema.field(column).type
    if not _is_text(kind):
        others = [field.name for field in schema if _is_text(field.type)]
        raise _no_text(f"{path}: column {column!r}", _called(kind), others)


def _no_text(what: str, kind: str, others: Sequence[str]) -> TextError:
    known = f"columns of text are {', '.join(others)}" if others else "no column holds text: write one"
    return TextError(f"{what} (language.text.column) holds {kind}, expected text; {known}")


def _called(kind: pa.DataType) -> str:
    """What the values of a type are, in a user's words, as `_kind` has them of a value."""
    if _is_text(kind):
        return "texts"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"lists of {_called(kind.value_type)}"
    if pa.types.is_struct(kind):
        names = {field.name for field in kind}
        return "messages" if names & {"role", "content"} or {"from", "value"} <= names else "structs"
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "numbers"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes"
    return f"values of the type {str(kind).partition('[')[0].rstrip('0123456789')}"


def documents_of(files: Iterable[Path], separator: str, column: str) -> Iterator[str]:
    """Documents of text files, or of a column of Parquet files, without holding a file in memory.

    Raises:
        TextError: a file that cannot be read as what it is called, or a column that it does not have or that holds no
            text.
    """
    for path in files:
        if path.suffix.lower() == ".parquet":
            yield from _of_parquet(path, column)
        else:
            yield from _of_text(path, separator)


def _of_text(path: Path, separator: str) -> Iterator[str]:
    """Pieces between separators, which stand on lines of their own; each line, where that is the separator."""
    if separator == _LINE:
        yield from map(str.strip, lines(path))
        return
    divides, size, piece = separator.strip(), 0, []
    for line in lines(path):
        if line.strip() == divides:
            yield "".join(piece).strip()
            size, piece = 0, []
            continue
        piece.append(line)
        size += len(line)
        if size > LONGEST:
            raise TextError(
                f"{path}: has a document of more than {LONGEST:,} characters; name what divides it in "
                f"language.text.separator, now {separator!r}"
            )
    yield "".join(piece).strip()


def _of_parquet(path: Path, column: str) -> Iterator[str]:
    refuse_pointer(path)
    try:
        with parquet.ParquetFile(path) as file:
            _check_column(path, file.schema_arrow, column)
            others = [field.name for field in file.schema_arrow if _is_text(field.type)]
            batches = (
                batch
                for group in range(file.num_row_groups)
                for batch in file.iter_batches(_GROUP, columns=[column], row_groups=[group])
            )
            values = (value.as_py() for batch in batches for value in batch[column])
            yield from _strings(values, f"{path}: column {column!r}", others)
    except UnicodeDecodeError:
        raise TextError(f"{path}: column {column!r} has text that is not UTF-8; write it as UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        raise TextError(f"{path}: no whole Parquet file; fetch or write it again ({error})") from error


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _strings(values: Iterable[Any], what: str, others: Sequence[str]) -> Iterator[str]:
    """Values that are text; null ones are left out and counted in the log.

    Arguments:
        what: the column, for messages.
        others: columns that hold text.
    Raises:
        TextError: a value of another kind.
    """
    n_null = 0
    try:
        for value in values:
            if value is None:
                n_null += 1
            elif isinstance(value, str):
                yield value.removeprefix(MARK)
            else:
                raise _no_text(what, _kind(value), others)
    finally:
        if n_null:
            log.warning("%s: %s without a value left out", what, _counted(n_null, "row"))


def _kind(value: Any) -> str:
    """What the values of a column are, in a user's words."""
    match value:
        case [first, *_]:
            return f"lists of {_kind(first)}"
        case list():
            return "lists"
        case {"role": _} | {"content": _} | {"from": _, "value": _}:
            return "messages"
        case dict():
            return "structs"
        case bytes():
            return "bytes"
        case bool() | int() | float():
            return "numbers"
        case str():
            return "texts"
    return f"values of the type {type(value).__name__}"


def enough(texts: Iterable[str], n_tokens: int, *, seed: int = 0, held_out_share: float = 0.0) -> Iterator[str]:
    """The first documents, enough for a number of tokens, and for each split's share, under any common tokenizer.

    Arguments:
        seed: root of the draw of the splits.
        held_out_share: of the tokens.
    """
    left = {"held_out": n_tokens * _CHARACTERS_PER_TOKEN * held_out_share}
    left["train"] = n_tokens * _CHARACTERS_PER_TOKEN - left["held_out"]
    for number, text in enumerate(_not_empty(texts)):
        yield text
        left[split_of(number, seed, held_out_share)] -= len(text)
        if max(left.values()) <= 0:
            return


def documents_of_hub(text: Any) -> Iterator[str]:
    """Documents of a data set on the Hugging Face hub, as the section `language.text` names it; needs the network.

    Raises:
        TextError: a data set that cannot be had or read, a column that it does not have or that holds no text, or a
            folder here that goes by its name.
    """
    if not Path(text.dataset).is_absolute() and Path(text.dataset).exists():
        raise TextError(
            f"language.text.dataset: {text.dataset} lies in this folder and would be read in place of the hub's"
        )
    from datasets import load_dataset  # half a second, which only a download needs

    try:
        rows = iter(
            load_dataset(text.dataset, text.subset, split=text.split, revision=text.revision, streaming=text.streaming)
        )
        first = next(rows, {text.column: None})
        if text.column not in first:
            raise TextError(f"language.text.column: {text.dataset} has no {text.column!r}, but {', '.join(first)}")
        values = (row.get(text.column) for row in itertools.chain([first], rows))
        others = [name for name, value in first.items() if isinstance(value, str)]
        yield from _strings(values, f"{text.dataset}: column {text.column!r}", others)
    except TextError:
        raise
    except Exception as error:  # of `datasets` and all below it: the hub's, the network's, those of each file format
        key, what_to_do = next((rest for said, *rest in _OF_HUB if str(error).startswith(said)), ("dataset", ""))
        said = " ".join(str(error).partition("\nExample of usage")[0].split())
        raise TextError(f"language.text.{key}: {text.dataset} cannot be read: {said}{what_to_do}") from error


_TOKEN = "set the environment variable HF_TOKEN to a token of an account that may read it"
_OF_HUB = (
    ("Revision ", "revision", " Name a commit, a tag or a branch."),
    ("BuilderConfig ", "subset", ""),
    ("Config name is missing", "subset", ""),
    ("Bad split", "split", ""),
    ("Unknown split", "split", ""),
    ("Dataset '", "dataset", f" Check the name; if it is gated, accept its terms on its page; {_TOKEN}."),
)
"""How errors of `datasets` begin, the key that each is about, and what to do."""
