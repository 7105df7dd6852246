"""A hierarchy of concepts as the tokens of one model: which words count, which are held out, which were excluded."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from saeflow.reproduce import child_seed

Hierarchy = Mapping[str, Mapping[str, Sequence[str]]]
"""Words by child by parent; under the child "" words of the parent alone."""
OWN = ""
MARKS = ("\N{LOWER ONE EIGHTH BLOCK}", "Ġ")  # what stands for a space before a word: SentencePiece, byte-level BPE


@dataclass(frozen=True)
class Concepts:
    """Words of a hierarchy that are one token each.

    Arguments:
        parents, children: names; a child's is `<parent>/<child>`.
        parent_of: parent of each child.  Shape [n_children].
        table: a row per token: `text`, `lemma`, `token` (id), `parent`, `child` (-1: the parent's own), `held_out`.
            Forms of one lemma are held out together.
    """

    parents: tuple[str, ...]
    children: tuple[str, ...]
    parent_of: Int[np.ndarray, " n_children"]
    table: pd.DataFrame

    @property
    def tokens(self) -> Int[np.ndarray, " n"]:
        return self.table["token"].to_numpy()

    @property
    def parent(self) -> Int[np.ndarray, " n"]:
        return self.table["parent"].to_numpy()

    @property
    def child(self) -> Int[np.ndarray, " n"]:
        return self.table["child"].to_numpy()

    @property
    def held_out(self) -> Bool[np.ndarray, " n"]:
        return self.table["held_out"].to_numpy()

    def halves(self, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
        """Half of the lemmas of each child (and of each parent's own words), drawn at random."""
        return split(self.table, 0.5, rng)

    def save(self, path: Path) -> None:
        """Write the table, with names, as Parquet."""
        names = {"parent_name": [self.parents[p] for p in self.parent]}
        names["child_name"] = [self.children[c] if c >= 0 else "" for c in self.child]
        self.table.assign(**names).to_parquet(path, index=False)

    @classmethod
    def load(cls, path: Path) -> "Concepts":
        """Read what `save` wrote."""
        table = pd.read_parquet(path)
        parents = table.drop_duplicates("parent").sort_values("parent")["parent_name"]
        children = table[table["child"] >= 0].drop_duplicates("child").sort_values("child")
        own = table.drop(columns=["parent_name", "child_name"])
        return cls(tuple(parents), tuple(children["child_name"]), children["parent"].to_numpy(), own)


def split(table: pd.DataFrame, share: float, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """True for a share of the lemmas of each group (parent, child), drawn in the order of the table."""
    chosen = np.zeros(len(table), bool)
    for _, rows in table.groupby(["parent", "child"], sort=True):
        lemmas = list(dict.fromkeys(rows["lemma"]))
        drawn = {lemmas[i] for i in rng.permutation(len(lemmas))[: round(share * len(lemmas))]}
        chosen[table.index.get_indexer(rows.index)] = rows["lemma"].isin(drawn)
    return chosen


def single_tokens(vocabulary: Mapping[str, int], excluded: Iterable[int] = ()) -> dict[str, int]:
    """Token id of each text that is one whole word for a model.

    Where tokens carry a mark for the space before them, only marked ones begin a word; a word-level vocabulary has
    none. Of two ids for one text the lower counts.
    """
    excluded = set(excluded)
    marked = [mark for mark in MARKS if sum(token.startswith(mark) for token in vocabulary) > len(vocabulary) // 20]
    words: dict[str, int] = {}
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        mark = next((mark for mark in marked if token.startswith(mark)), "")
        text = token.removeprefix(mark)
        if number not in excluded and text.isalpha() and bool(mark) == bool(marked):
            words.setdefault(text, number)
    return words


def forms(word: str) -> list[str]:
    """The forms in which a noun is looked for: itself, capitalised, and its regular plural."""
    stem, ending = (word[:-1], "ies") if word.endswith("y") and word[-2:-1] not in "aeiou" else (word, "s")
    plural = word + "es" if word.endswith(("s", "x", "ch", "sh")) else stem + ending
    return [word, word.capitalize(), plural]


def build(
    hierarchy: Hierarchy,
    words: Mapping[str, int],
    *,
    seed: int,
    held_out_share: float = 0.3,
    min_words: int = 6,
    min_children: int = 2,
    all_forms: bool = False,
) -> tuple[Concepts, dict[str, int]]:
    """The part of a hierarchy that a model's tokens can show, and counts of what was left out.

    A word with several places keeps none of them, so that no word is evidence for two concepts.

    Arguments:
        hierarchy: words by child by parent; order counts.
        words: of `single_tokens`.
        seed: of the split.
        held_out_share: of the lemmas of each child.
        min_words: lemmas that a child must keep.
        min_children: children that a parent must keep.
        all_forms: take each of `forms` that is a token, not the word alone.
    Raises:
        ValueError: fewer than two parents are left.
    """
    counts: Counter[str] = Counter()
    places = Counter(word for children in hierarchy.values() for group in children.values() for word in set(group))
    kept: dict[str, dict[str, list[tuple[str, str, int]]]] = {}
    for parent, children in hierarchy.items():
        for child, group in children.items():
            found = []
            for word in dict.fromkeys(group):
                counts["words"] += 1
                tokens = [form for form in (forms(word) if all_forms else [word]) if form in words]
                counts["not one token"] += not tokens
                counts["several places"] += bool(tokens) and places[word] > 1
                if places[word] == 1:
                    found += [(form, word, words[form]) for form in tokens]
            enough = len({lemma for _, lemma, _ in found}) >= min_words
            if enough or child == OWN:
                kept.setdefault(parent, {})[child] = found
            else:
                counts["children with too few words"] += 1
                counts["words of such children"] += len({lemma for _, lemma, _ in found})
    whole = {p: groups for p, groups in kept.items() if sum(child != OWN for child in groups) >= min_children}
    counts["parents with too few children"] = len(hierarchy) - len(whole)
    if len(whole) < 2:
        raise ValueError(
            f"{len(whole)} of {len(hierarchy)} parents keep {min_children} children with {min_words} one-token words; "
            "two are needed: name larger concepts, or lower min_words"
        )
    rows, names, parent_of = [], [], []
    for p, (parent, groups) in enumerate(whole.items()):
        for child, found in groups.items():
            number = -1
            if child != OWN:
                number = len(names)
                names.append(f"{parent}/{child}")
                parent_of.append(p)
            rows += [(text, lemma, token, p, number) for text, lemma, token in found]
    table = pd.DataFrame(rows, columns=["text", "lemma", "token", "parent", "child"])
    table = table.drop_duplicates("token", ignore_index=True)
    table["held_out"] = split(table, held_out_share, np.random.default_rng(child_seed(seed, "held out")))
    counts |= {"kept parents": len(whole), "kept children": len(names), "kept tokens": len(table)}
    counts["kept words"] = table["lemma"].nunique()
    return Concepts(tuple(whole), tuple(names), np.array(parent_of), table), dict(counts)


def refuse_more(concepts: Concepts, parents: int, children: int | None) -> None:
    """Refuse more concepts than hierarchical SAEs have latents.

    Arguments:
        parents: latents, each for one parent.
        children: latents of a parent, each for one child, if a teacher gives them; else None.
    Raises:
        ValueError: names the key.
    """
    n, most = len(concepts.parents), int(np.bincount(concepts.parent_of).max())
    for key, latents, found, what in (
        ("parents", parents, n, f"{n} parents"),
        ("children", children, most, f"a parent with {most} children"),
    ):
        if latents is not None and found > latents:
            raise ValueError(
                f"geometry.hierarchical.{key}: {latents}, but the model's words show {what}; give {found} or more"
            )


def prompts(concepts: Concepts, templates: Sequence[str], per_concept: int, seed: int) -> pd.DataFrame:
    """Prompts that lead to words of each parent: a template filled with some of its training words.

    `{concept}` is the parent's name in words, `{word}`, `{word2}` ... are distinct words of one of its children.

    Returns:
        `parent`, `child`, `prompt`; `per_concept` rows for each parent, drawn with replacement.
    """
    rows = []
    for p, name in enumerate(concepts.parents):
        rng = np.random.default_rng(child_seed(seed, "prompts", name))
        children = np.flatnonzero(concepts.parent_of == p)
        for _ in range(per_concept):
            child = int(rng.choice(children))
            seen = concepts.table[(concepts.child == child) & ~concepts.held_out]["text"].to_numpy()
            drawn = rng.permutation(seen)
            template = templates[rng.integers(len(templates))]
            fields = {f"word{i + 1}" if i else "word": drawn[i % len(drawn)] for i in range(4)}
            fields["concept"] = name.split(".")[0].replace("_", " ")
            rows.append((p, child, template.format(**fields)))
    return pd.DataFrame(rows, columns=["parent", "child", "prompt"])
