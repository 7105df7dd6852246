"""Whether words that a concept vector has not seen lie along it: held-out membership and left-out children."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from saeflow.geometry.concept_vectors import concept_vector, projections
from saeflow.geometry.concepts import Concepts


class Membership(NamedTuple):
    """Held-out words against the words of other concepts, one value per concept."""

    inside: Float[np.ndarray, " n"]
    """Mean projection g . l / |l|^2 of the concept's held-out words."""
    outside: Float[np.ndarray, " n"]
    """Mean projection of words of other concepts."""
    auc: Float[np.ndarray, " n"]
    """Chance that a held-out word projects higher than a word of another concept."""


def auc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " k"]) -> float:
    """Area under the ROC curve, ties counted half: (sum of ranks - n (n + 1) / 2) / (n k).  NaN without both."""
    n, k = len(inside), len(outside)
    if not n or not k:
        return float("nan")
    ranks = rankdata(np.concatenate([inside, outside]))[:n]
    return float((ranks.sum() - n * (n + 1) / 2) / (n * k))


def _measured(projected: np.ndarray, members: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    if not members.any():
        return (float("nan"),) * 3
    inside, outside = projected[members], projected[others]
    return float(inside.mean()), float(outside.mean()), auc(inside, outside)


def membership(
    g: Float[np.ndarray, "n d"],
    vectors: Float[np.ndarray, "concepts d"],
    member: Bool[np.ndarray, "concepts n"],
    held_out: Bool[np.ndarray, " n"],
    against: Bool[np.ndarray, "concepts n"] | None = None,
) -> Membership:
    """Held-out membership of each concept.

    Arguments:
        g: whitened rows of the hierarchy's words.
        vectors: of each concept, fitted without the held-out words.
        member: words of each concept.
        against: words that each concept is told from; all that are not its own, if not given.
    """
    against = ~member if against is None else against
    rows = [
        _measured(projections(g, vector), own & held_out, others)
        for vector, own, others in zip(vectors, member, against, strict=True)
    ]
    return Membership(*map(np.array, zip(*rows, strict=True)))


def leave_one_child_out(g: Float[np.ndarray, "n d"], concepts: Concepts) -> Float[np.ndarray, " children"]:
    """AUC of a child's words, against other parents' words, along a parent vector fitted on its siblings alone.

    NaN for a child whose siblings have fewer than three words.
    """
    found = np.full(len(concepts.children), np.nan)
    for c, p in enumerate(concepts.parent_of):
        siblings = (concepts.parent == p) & (concepts.child != c) & (concepts.child >= 0)
        if siblings.sum() >= 3:
            projected = projections(g, concept_vector(g[siblings]))
            found[c] = auc(projected[concepts.child == c], projected[concepts.parent != p])
    return found
