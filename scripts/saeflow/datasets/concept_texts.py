"""Concepts as text: a file per concept, a sentence per line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from saeflow.datasets import text_files

FEWEST = 20
"""Sentences that a concept needs: half of them are held out, and an AUROC over fewer says nothing."""


class ConceptError(ValueError):
    """A concept file that cannot be used; names the file, the line, and what would be right."""


@dataclass(frozen=True)
class ConceptTexts:
    """Sentences of several concepts; those of one are the counterexamples of the others."""

    names: tuple[str, ...]
    sentences: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    """Concept of each sentence, as an index into `names`."""


def read(paths: Sequence[Path]) -> ConceptTexts:
    """Concepts of text files, in the order of their names; a concept is called as its file. Empty lines are skipped.

    Raises:
        ConceptError: fewer than two files, a name twice, too few sentences, or a sentence twice.
        TextError: a file that is no text.
    """
    by_name = {path.stem: path for path in paths}
    if len(by_name) < len(paths):
        twice = sorted({p.stem for p in paths if sum(q.stem == p.stem for q in paths) > 1})
        raise ConceptError(f"concepts: {', '.join(twice)} is the name of two files; rename one")
    if len(by_name) < 2:
        raise ConceptError(f"concepts: {len(by_name)} file given; each concept is tested against the others: give two")
    sentences: list[str] = []
    labels: list[int] = []
    seen: dict[str, str] = {}
    for index, (_, path) in enumerate(sorted(by_name.items())):
        own = [line.strip() for line in text_files.lines(path)]
        for number, sentence in enumerate(own, 1):
            if not sentence:
                continue
            if sentence in seen:
                raise ConceptError(f"{path}, line {number}: {sentence!r} is in {seen[sentence]} already; drop one")
            seen[sentence] = f"{path.name}, line {number},"
        found = [sentence for sentence in own if sentence]
        if len(found) < FEWEST:
            raise ConceptError(f"{path}: {len(found)} sentences; a concept needs {FEWEST}, one per line")
        sentences += found
        labels += [index] * len(found)
    return ConceptTexts(tuple(sorted(by_name)), tuple(sentences), np.array(labels))
