"""Park et al.'s published procedure, and the older angle statistics, which say nothing: kept to be compared with.

Park, Choe, Jiang and Veitch 2025, "The Geometry of Categorical and Hierarchical Concepts in Large Language Models"
(2406.01506), and their code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.covariance import LedoitWolf

from saeflow.geometry.concept_vectors import angles, projections


class Projections(NamedTuple):
    """Mean of g(y) . l / |l|^2 over three sets of words; 1, 1 and 0 are expected, and 1, 0, 0 on shuffled rows."""

    train: float
    test: float
    other: float


def lda_direction(g: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """Their estimate of a concept's vector: scikit-learn's Ledoit-Wolf covariance, inverted by `pinv`."""
    m = g.mean(0)
    u = np.linalg.pinv(LedoitWolf().fit(g).covariance_) @ m
    u /= np.linalg.norm(u)
    return (m @ u) * u


def projection_test(
    g: Float[np.ndarray, "v d"],
    words: Int[np.ndarray, " n"],
    others: Int[np.ndarray, " k"],
    rng: np.random.Generator,
    train_share: float = 0.7,
) -> Projections:
    """Their evaluation of one concept: fit on 70 % of its words, project those, the rest, and other words."""
    order = rng.permutation(words)
    n = round(train_share * len(words))
    vector = lda_direction(g[order[:n]])
    return Projections(*(float(projections(g[rows], vector).mean()) for rows in (order[:n], order[n:], others)))


def nested_angles(parents: Float[np.ndarray, "n d"], children: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Angle between l_p and l_c - l_p, both fitted on all their words, in degrees.  Uninformative.

    A child's words are among its parent's. Take words without any structure, g(y) independent with mean 0 and variance
    s^2 I, and means as vectors: l_c over n_c words, l_p over n_p > n_c of which these are a part. Then
    E[l_c . l_p] = s^2 d / n_p = E|l_p|^2, so E[(l_c - l_p) . l_p] = 0: 90 degrees without any hierarchy.
    """
    return angles(parents, children - parents)


def unit_angles(parents: Float[np.ndarray, "n d"], children: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Angle between u_p and u_c - u_p, both of length 1, in degrees.  Uninformative.

    With phi the angle between u_p and u_c: u_p . (u_c - u_p) = cos phi - 1 = -2 sin^2(phi / 2) and
    |u_c - u_p| = 2 sin(phi / 2), so the cosine is -sin(phi / 2) and the angle 90 + phi / 2, never below 90 for any two
    vectors: a rule "at least 80 degrees" passes on everything.
    """
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (parents, children))
    return angles(u, v - u)


def hierarchy_cosines(
    g: Float[np.ndarray, "v d"], pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Float[np.ndarray, " n"]:
    """Their cosines of l_c - l_p and l_p, for (parent words, child words)."""
    parents = np.stack([lda_direction(g[p]) for p, _ in pairs])
    children = np.stack([lda_direction(g[c]) for _, c in pairs])
    return np.cos(np.radians(nested_angles(parents, children)))
