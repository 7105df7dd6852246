"""The journal of an unfinished part: its settings, then a line per chunk that is whole on disk."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from saeflow.activations.layout import ARRAYS, JOURNAL, ArrayName, Spec, StoreError

Digests = dict[ArrayName, list[str]]


def write_journal(directory: Path, spec: Spec, digests: Digests) -> None:
    """Begin a journal, with the whole chunks that are there already."""
    lines = [spec.record()]
    for pair in zip(*(digests[array] for array in ARRAYS), strict=True):
        lines.append({"rows": spec.chunk_rows, **dict(zip(ARRAYS, pair, strict=True))})
    partial = directory / f"{JOURNAL}.partial"
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, directory / JOURNAL)


def add_to_journal(directory: Path, n_rows: int, digests: Mapping[ArrayName, str]) -> None:
    """Note a chunk that is on disk; the last one of a part may have fewer rows than a whole one."""
    with open(directory / JOURNAL, "a", encoding="utf-8") as journal:
        journal.write(json.dumps({"rows": n_rows, **digests}) + "\n")


def read_journal(directory: Path) -> tuple[Spec, Digests, int]:
    """Settings, digests and rows of an unfinished part.

    Raises:
        StoreError: not a journal.
    """
    path = directory / JOURNAL
    # What follows the last line break was being written when the writer was killed.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    digests: Digests = {array: [] for array in ARRAYS}
    n_rows = 0
    try:
        spec = Spec.from_record(json.loads(lines[0]))
        for line in map(json.loads, lines[1:]):
            n_rows += line["rows"]
            for array in ARRAYS:
                digests[array].append(line[array])
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not the journal of a part ({error!r}); start over with 'replace'") from error
    return spec, digests, n_rows
