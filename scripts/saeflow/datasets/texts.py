"""Documents of text: read from a folder or the Hugging Face hub, kept as one Parquet file, dealt into two splits.

The file has a row per document, `document` (its number) and `text`; everything after reads only this file, in order and
without holding it in memory.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
from pyarrow import parquet

from saeflow.reproduce import child_seed

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SCHEMA = pa.schema([("document", pa.int64()), ("text", pa.string())])
_GROUP = 4096  # documents in memory
_CHARACTERS_PER_TOKEN = 8  # of the hub's data sets is taken what is enough for any tokenizer


class TextError(ValueError):
    """Text that cannot be read as asked; names the folder, file or column and what would be right."""


def write(path: Path, texts: Iterable[str]) -> int:
    """Write documents, numbered in their order; empty ones are left out.

    Returns:
        the number of documents.
    Raises:
        TextError: none at all.
    """
    n, waiting = 0, []
    with parquet.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:

        def flush() -> None:
            numbers = pa.array(range(n - len(waiting), n), pa.int64())
            writer.write_table(pa.table([numbers, pa.array(waiting, pa.string())], _SCHEMA))
            waiting.clear()

        for text in texts:
            if text.strip():
                waiting.append(text)
                n += 1
                if len(waiting) == _GROUP:
                    flush()
        if waiting:
            flush()
    if not n:
        raise TextError(f"{path}: the text has no document")
    return n


def read(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each document of a file that `write` made."""
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_GROUP):
            yield from zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True)


def split_of(document: int, seed: int, held_out_share: float) -> Split:
    """The split that a document is in: drawn for each by itself, so that no token of one is in both."""
    return "held_out" if child_seed(seed, "split", document) < held_out_share * 2**63 else "train"


def files_of(folder: Path | str) -> list[Path]:
    """Text and Parquet files of a folder, sorted by name.

    Raises:
        TextError: no such folder, none in it, or both kinds.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TextError(f"language.text.folder: {folder} is no folder")
    found = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".parquet") and path.is_file())
    kinds = {path.suffix for path in found}
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
        raise TextError(f"language.text.folder: {files[0].parent} has no text in its {len(files)} files")
    for path in files:
        if path.suffix.lower() == ".parquet":
            try:
                schema = parquet.read_schema(path)
            except (pa.ArrowException, OSError) as error:
                raise TextError(f"{path}: no whole Parquet file; fetch or write it again ({error})") from None
            _check_column(path, schema, column)


def _check_column(path: Path, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise TextError(f"{path}: has no column {column!r}, but {', '.join(schema.names)}: set language.text.column")
    kind, others = schema.field(column).type, [field.name for field in schema if _is_text(field.type)]
    if not _is_text(kind):
        known = f"columns of text are {', '.join(others)}" if others else "no column holds text: write one"
        raise TextError(f"{path}: column {column!r} (language.text.column) holds {kind}, expected text; {known}")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def documents_of(files: Iterable[Path], separator: str, column: str) -> Iterator[str]:
    """Documents of text files, or of a column of Parquet files, without holding a file in memory.

    Raises:
        TextError: a column that a file does not have, or a file that is not UTF-8.
    """
    for path in files:
        if path.suffix == ".parquet":
            yield from _of_parquet(path, column)
        else:
            yield from _of_text(path, separator)


def _of_text(path: Path, separator: str) -> Iterator[str]:
    """Pieces between separators, which stand on lines of their own."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip() == separator:
                    yield "".join(lines).strip()
                    lines.clear()
                else:
                    lines.append(line)
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: not UTF-8 ({error}); convert it") from None
    yield "".join(lines).strip()


def _of_parquet(path: Path, column: str) -> Iterator[str]:
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise TextError(f"{path}: has no column {column!r}, but {', '.join(names)}: set language.text.column")
        for batch in file.iter_batches(_GROUP, columns=[column]):
            yield from (text for text in batch[column].to_pylist() if text is not None)


def enough(texts: Iterable[str], n_tokens: int) -> Iterator[str]:
    """The first documents, enough for a number of tokens under any common tokenizer."""
    left = n_tokens * _CHARACTERS_PER_TOKEN
    for text in texts:
        yield text
        left -= len(text)
        if left <= 0:
            return


def documents_of_hub(text: Any) -> Iterator[str]:
    """Documents of a data set on the Hugging Face hub, as the section `language.text` names it; needs the network.

    Raises:
        TextError: a column that the data set does not have, or a folder here that goes by its name.
    """
    if Path(text.dataset).exists():
        raise TextError(
            f"language.text.dataset: {text.dataset} lies in this folder and would be read in place of the hub's"
        )
    from datasets import load_dataset  # half a second, which only a download needs

    rows = load_dataset(text.dataset, text.subset, split=text.split, revision=text.revision, streaming=text.streaming)
    for row in rows:
        if text.column not in row:
            raise TextError(f"language.text.column: {text.dataset} has no {text.column!r}, but {', '.join(row)}")
        yield row[text.column]
