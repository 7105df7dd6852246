"""Phase 1: everything that is measured of one hierarchy in one unembedding, with its controls and intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from saeflow.geometry import published
from saeflow.geometry.concept_vectors import concept_vectors
from saeflow.geometry.concepts import Concepts
from saeflow.geometry.crossfit import crossfit_angles, median_angle
from saeflow.geometry.membership import leave_one_child_out, membership
from saeflow.geometry.resampling import interval
from saeflow.geometry.simplex import simplices
from saeflow.reproduce import child_seed


@dataclass(frozen=True)
class Teacher:
    """Concept vectors fitted on the words that are not held out.

    Arguments:
        parents: l_p.  Shape [n_parents, d].
        children: l_c.  Shape [n_children, d].
        deltas: l_c - l_p.  Shape [n_children, d].
    """

    parents: Float[np.ndarray, "p d"]
    children: Float[np.ndarray, "c d"]
    deltas: Float[np.ndarray, "c d"]

    @classmethod
    def fit(cls, g: Float[np.ndarray, "n d"], concepts: Concepts) -> "Teacher":
        """Of the whitened rows of the hierarchy's words."""
        seen = ~concepts.held_out
        parents = concept_vectors(g, [seen & (concepts.parent == p) for p in range(len(concepts.parents))])
        children = concept_vectors(g, [seen & (concepts.child == c) for c in range(len(concepts.children))])
        return cls(parents, children, children - parents[concepts.parent_of])


@dataclass(frozen=True)
class Measured:
    """Numbers of one hierarchy.

    Arguments:
        values: `statistic`, `value`, `low`, `high` (95 %, resampled parents), a row per statistic.
        concepts: a row per parent and child, with what was measured of it.
        angles: `kind`, `split`, `child`, `degrees`: the crossfit angles and their controls, for histograms.
    """

    values: pd.DataFrame
    concepts: pd.DataFrame
    angles: pd.DataFrame

    def value(self, statistic: str) -> float:
        """One statistic."""
        return float(self.values.set_index("statistic").loc[statistic, "value"])


def shuffled_rows(g: Float[np.ndarray, "v d"], seed: int) -> Float[np.ndarray, "v d"]:
    """The whitened rows in a random order over the vocabulary: the control in which words mean nothing."""
    return g[np.random.default_rng(child_seed(seed, "shuffled rows")).permutation(len(g))]


def with_random_parents(concepts: Concepts, seed: int) -> Concepts:
    """Children handed to parents at random, each parent keeping its number of them; no parent has words of its own."""
    rng = np.random.default_rng(child_seed(seed, "random parents"))
    parent_of = rng.permutation(concepts.parent_of)
    table = concepts.table[concepts.child >= 0].reset_index(drop=True)
    table["parent"] = parent_of[table["child"]]
    return Concepts(concepts.parents, concepts.children, parent_of, table)


def measure(
    g: Float[np.ndarray, "v d"],
    concepts: Concepts,
    rows: Mapping[int, int] | None = None,
    *,
    seed: int,
    n_splits: int = 5,
    n_resamples: int = 1000,
) -> Measured:
    """Held-out membership, crossfit angles, left-out children, simplices, controls and the older angles.

    Arguments:
        g: whitened unembedding rows.
        rows: row of `g` of each token id; its own number, if not given.
        seed: root of the draws.
    """
    numbers = concepts.tokens if rows is None else np.array([rows[token] for token in concepts.tokens])
    words = g[numbers]
    shuffled = shuffled_rows(g, seed)[numbers]

    def draw(name: str) -> np.random.Generator:
        return np.random.default_rng(child_seed(seed, name))

    teacher, noise = Teacher.fit(words, concepts), Teacher.fit(shuffled, concepts)
    in_parent = concepts.parent == np.arange(len(concepts.parents))[:, None]
    in_child = concepts.child == np.arange(len(concepts.children))[:, None]
    siblings = in_parent[concepts.parent_of] & ~in_child & (concepts.child >= 0)
    held_out = concepts.held_out
    parent = membership(words, teacher.parents, in_parent, held_out)
    child = membership(words, teacher.children, in_child, held_out)
    # Siblings' words that l_p was fitted on lie low along l_c - l_p by that alone.
    among = membership(words, teacher.deltas, in_child, held_out, siblings & held_out)
    parent_noise = membership(shuffled, noise.parents, in_parent, held_out)
    child_noise = membership(shuffled, noise.children, in_child, held_out)
    among_noise = membership(shuffled, noise.deltas, in_child, held_out, siblings & held_out)
    left_out = leave_one_child_out(words, concepts)
    crossfit = {
        "crossfit": crossfit_angles(words, concepts, draw("halves"), n_splits),
        "random parent": crossfit_angles(words, concepts, draw("halves"), n_splits, random_parents=True),
        "shuffled rows": crossfit_angles(shuffled, concepts, draw("halves"), n_splits),
    }
    vertices = simplices(words, concepts, draw("simplices"))
    everything = [concept_vectors(w, list(in_parent)) for w in (words, shuffled)]
    smaller = [concept_vectors(w, list(in_child)) for w in (words, shuffled)]

    of_child, of_parent = concepts.parent_of, np.arange(len(concepts.parents))
    mean, middle = np.nanmean, np.nanmedian
    statistics = {
        "parent projection, held out": (parent.inside, of_parent, mean),
        "parent projection, other words": (parent.outside, of_parent, mean),
        "parent AUC": (parent.auc, of_parent, mean),
        "parent AUC, shuffled rows": (parent_noise.auc, of_parent, mean),
        "child projection, held out": (child.inside, of_child, mean),
        "child projection, other words": (child.outside, of_child, mean),
        "child AUC": (child.auc, of_child, mean),
        "child AUC, shuffled rows": (child_noise.auc, of_child, mean),
        "child AUC among siblings, along delta": (among.auc, of_child, mean),
        "child AUC among siblings, shuffled rows": (among_noise.auc, of_child, mean),
        "left-out child AUC": (left_out, of_child, mean),
        "crossfit angle": (crossfit["crossfit"], of_child, median_angle),
        "crossfit angle, random parent": (crossfit["random parent"], of_child, median_angle),
        "crossfit angle, shuffled rows": (crossfit["shuffled rows"], of_child, median_angle),
        "vertex accuracy": (np.array([v.accuracy for v in vertices]), of_parent, mean),
        "vertex accuracy, shuffled words": (np.array([v.chance for v in vertices]), of_parent, mean),
    }
    for name, kind in (("nested angle", published.nested_angles), ("unit-length angle", published.unit_angles)):
        for suffix, p, c in zip(("", ", shuffled rows"), everything, smaller, strict=True):
            statistics[name + suffix] = (kind(p[of_child], c), of_child, middle)
    rows_ = []
    for name, (values, groups, statistic) in statistics.items():
        rows_.append((name, *interval(values, groups, statistic, n_resamples, draw(f"interval {name}"))))
    about_parents = pd.DataFrame(
        {
            "concept": concepts.parents,
            "level": "parent",
            "n_words": in_parent.sum(1),
            "inside": parent.inside,
            "outside": parent.outside,
            "auc": parent.auc,
            "norm": np.linalg.norm(teacher.parents, axis=1),
            **{name: [getattr(v, name) for v in vertices] for name in vertices[0]._fields},
        }
    )
    about_children = pd.DataFrame(
        {
            "concept": concepts.children,
            "level": "child",
            "n_words": in_child.sum(1),
            "inside": child.inside,
            "outside": child.outside,
            "auc": child.auc,
            "auc_siblings": among.auc,
            "auc_left_out": left_out,
            "crossfit": np.median(crossfit["crossfit"], axis=0),
            "norm": np.linalg.norm(teacher.children, axis=1),
        }
    )
    degrees = [
        (kind, split, concepts.children[c], value)
        for kind, values in crossfit.items()
        for (split, c), value in np.ndenumerate(values)
    ]
    return Measured(
        pd.DataFrame(rows_, columns=["statistic", "value", "low", "high"]),
        pd.concat([about_parents, about_children], ignore_index=True),
        pd.DataFrame(degrees, columns=["kind", "split", "child", "degrees"]),
    )
