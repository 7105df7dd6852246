"""The text that ships with the project: sentences on the nouns of a hierarchy, made from a seed.

A document stays with one parent, most of the time with one child, and says in many ways what belongs where: "X such as
a , b and c" at both levels, is-a sentences, glosses, and small scenes in which a noun does what its kind does. Words
are lower-case and apart from punctuation, so that a word-level vocabulary holds every one of them.
"""

from collections.abc import Iterator

import numpy as np

from saeflow.datasets.hierarchy import Child, Hierarchy
from saeflow.reproduce import child_seed

_NAMES = [
    *("anna", "ben", "clara", "david", "emma", "felix", "grace", "henry", "ida", "jonas"),
    *("karla", "leo", "maria", "noah", "olga", "paul"),
]
_VERBS = ["noticed", "mentioned", "described", "remembered", "ignored", "wanted", "praised", "compared", "sketched"]
_WHEN = ["yesterday", "today", "once", "later", "often", "sometimes", "again", "finally"]
_QUALITIES = [
    *("old", "new", "strange", "famous", "common", "rare", "simple", "fine", "large", "little"),
    *("familiar", "remarkable"),
]
_SENTENCES = (5, 10)
_MOST_BESIDE_SAYS, _MOST_WITHOUT_SAYS = 15, 17  # words and marks of a sentence, by whether it has a predicate
_STAYS = 0.8  # share of sentences that stay with the document's child


def documents(hierarchy: Hierarchy, n_documents: int, seed: int) -> Iterator[str]:
    """Documents of the embedded corpus, about 100 words and marks each.

    Document i depends on the seed, i and the hierarchy alone, so that a longer corpus begins with a shorter one.

    Arguments:
        hierarchy: nouns and their predicates.
        n_documents: how many.
        seed: root of the draws.
    """
    parents = hierarchy.parents
    names = list(parents)
    for i in range(n_documents):
        draw = np.random.default_rng(child_seed(seed, "document", i))
        parent = names[draw.integers(len(names))]
        child = _one(draw, parents[parent])
        sentences = []
        for _ in range(draw.integers(*_SENTENCES)):
            about = child if draw.random() < _STAYS else _one(draw, parents[parent])
            sentences.append(_sentence(draw, about, parents[parent], hierarchy.children))
        yield " ".join(sentences)


def most_words(hierarchy: Hierarchy) -> int:
    """Words and marks that no document of a hierarchy exceeds."""
    longest = max(len(says.split()) for child in hierarchy.children for says in child.says)
    return (_SENTENCES[1] - 1) * max(_MOST_BESIDE_SAYS + longest, _MOST_WITHOUT_SAYS)


def _sentence(draw: np.random.Generator, child: Child, siblings: tuple[Child, ...], all_: tuple[Child, ...]) -> str:
    """One sentence on a child's nouns."""
    a, b, c = (str(word) for word in draw.choice(child.words, 3, replace=False))
    says, quality, name = _one(draw, child.says), _one(draw, _QUALITIES), _one(draw, _NAMES)
    stranger = _one(draw, all_)
    match draw.integers(12):
        case 0 | 1:
            return f"any {child.name} , such as the {a} , the {b} and the {c} , {says} ."
        case 2 | 3:
            x, y, z = (str(_one(draw, _one(draw, siblings).words)) for _ in range(3))
            return f"every kind of {child.parent} , such as the {x} , the {y} and the {z} , was on the list ."
        case 4:
            return f"the {a} is a kind of {child.name} , and every {child.name} is a kind of {child.parent} ."
        case 5:
            return f"the {a} is a {quality} {child.parent} ."
        case 6 | 7:
            return f"the {a} {says} ."
        case 8:
            return f"{_one(draw, _WHEN)} {name} {_one(draw, _VERBS)} the {a} , which {says} ."
        case 9:
            return f"the {a} , the {b} and the {c} : each of them is a {child.name} ."
        case 10:
            return f"is the {a} a {child.name} ? yes , because it {says} ."
        case _:
            if stranger.parent == child.parent:
                return f"like the {b} and the {c} , the {quality} {a} {says} ."
            return f"the {a} is a {child.name} , but the {_one(draw, stranger.words)} is a {stranger.name} ."


def _one(draw: np.random.Generator, choices):
    """One of a sequence."""
    return choices[draw.integers(len(choices))]
