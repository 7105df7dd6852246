"""A hierarchy of nouns, parent > child > nouns: what the embedded corpus is made from and geometry is measured on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from saeflow import strict_yaml
from saeflow.datasets import text_files
from saeflow.strict_yaml import shown


class HierarchyError(ValueError):
    """A file that holds no hierarchy; names the file, the category or word, and what would be right."""


@dataclass(frozen=True)
class Child:
    """A category of nouns.

    Arguments:
        name, parent: labels, single words as well.
        words: its nouns.
        says: predicates that hold for each of them.
    """

    name: str
    parent: str
    words: tuple[str, ...]
    says: tuple[str, ...]


@dataclass(frozen=True)
class Hierarchy:
    """Categories of two levels, in the order of the file."""

    children: tuple[Child, ...]

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a YAML file: `parent: {child: {words: "a b c", says: [predicate, ...]}}`.

        Raises:
            HierarchyError: no YAML, another form, a word that is not one lower-case word, or one that stands twice.
            TextError: a file that is no text.
        """
        try:
            content = strict_yaml.parse(text_files.read(Path(path)), str(path))
        except strict_yaml.YAMLFileError as error:
            raise HierarchyError(str(error)) from None
        if not isinstance(content, Mapping) or not content:
            raise HierarchyError(f"{path}: expected parents with children, found {shown(content)}")
        children = [
            _child(path, parent, name, entry)
            for parent, entries in content.items()
            for name, entry in _entries(path, parent, entries).items()
        ]
        seen: dict[str, str] = {}
        labels = [(label, "a label") for label in dict.fromkeys([*content, *(child.name for child in children)])]
        for word, where in labels + [(word, child.name) for child in children for word in child.words]:
            if word in seen:
                raise HierarchyError(
                    f"{path}: {word!r} stands twice, in {seen[word]} and in {where}; a word has one place"
                )
            seen[word] = where
        return cls(tuple(children))

    @property
    def parents(self) -> dict[str, tuple[Child, ...]]:
        """Children by the label of their parent."""
        found: dict[str, list[Child]] = {}
        for child in self.children:
            found.setdefault(child.parent, []).append(child)
        return {parent: tuple(children) for parent, children in found.items()}

    @property
    def words(self) -> tuple[str, ...]:
        """All nouns."""
        return tuple(word for child in self.children for word in child.words)


def _entries(path: Path | str, parent: Any, entries: Any) -> Mapping[str, Any]:
    if not isinstance(entries, Mapping) or not entries:
        raise HierarchyError(f"{path}: {parent}: expected children with `words` and `says`, found {shown(entries)}")
    return entries


def _child(path: Path | str, parent: str, name: str, entry: Any) -> Child:
    if not isinstance(entry, Mapping) or set(entry) != {"words", "says"}:
        raise HierarchyError(f"{path}: {parent}.{name}: expected the keys `words` and `says`, found {shown(entry)}")
    words, says = entry["words"], entry["says"]
    if not isinstance(words, str) or not isinstance(says, list) or not all(isinstance(said, str) for said in says):
        raise HierarchyError(
            f"{path}: {parent}.{name}: expected `words: a text of words` and `says: [a list of texts]`, found "
            f"{shown(words)} and {shown(says)}"
        )
    words, says = tuple(words.split()), tuple(says)
    for word in (parent, name, *words):
        if not (isinstance(word, str) and word.isascii() and word.isalpha() and word.islower()):
            raise HierarchyError(f"{path}: {parent}.{name}: {word!r} is not a single lower-case word")
    if len(words) < 4 or not says:
        raise HierarchyError(
            f"{path}: {parent}.{name}: {len(words)} words, {len(says)} says; expected 4 and 1, or more"
        )
    return Child(name, parent, words, says)
