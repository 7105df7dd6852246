"""Whether the children of a parent are the vertices of a simplex: a categorical concept's polytope."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from saeflow.geometry.concept_vectors import concept_vectors
from saeflow.geometry.concepts import Concepts


class Simplex(NamedTuple):
    """One parent's polytope, its k vertices l_c - l_p fitted without the held-out words."""

    n_vertices: int
    affine_rank: int
    """Singular values of the centred vertices above 1e-6 of the largest; k - 1 for a simplex.  Any k vectors in more
    dimensions have that rank, so it can only show what is degenerate."""
    thinness: float
    """Least over largest of these k - 1 singular values: 1 for a regular simplex, near 0 for a flat one."""
    edge_ratio: float
    """Shortest over longest edge."""
    accuracy: float
    """Share of held-out words whose own vertex has the largest barycentric coordinate: the test that can fail."""
    chance: float
    """The same with the words' children shuffled, mean over 200 shuffles."""
    p_value: float
    """Share of the shuffles that reach the accuracy, the true one counted in."""


def barycentric(g: Float[np.ndarray, "n d"], vertices: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "n k"]:
    """Coordinates of the nearest points of the vertices' affine hull; each row sums to 1."""
    origin = vertices.mean(0)
    inside = np.linalg.pinv((vertices - origin).T, rcond=1e-9) @ (g - origin).T
    return inside.T - inside.T.mean(1, keepdims=True) + 1 / len(vertices)


def simplices(
    g: Float[np.ndarray, "n d"], concepts: Concepts, rng: np.random.Generator, n_shuffles: int = 200
) -> list[Simplex]:
    """The polytope of each parent's children."""
    vectors = concept_vectors(g, [(concepts.child == c) & ~concepts.held_out for c in range(len(concepts.children))])
    found = []
    for p in range(len(concepts.parents)):
        own = np.flatnonzero(concepts.parent_of == p)
        vertices = vectors[own]
        k = len(own)
        values = np.linalg.svd(vertices - vertices.mean(0), compute_uv=False)[: k - 1]
        edges = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)[np.triu_indices(k, 1)]
        tested = concepts.held_out & np.isin(concepts.child, own)
        truth = np.searchsorted(own, concepts.child[tested])
        nearest = barycentric(g[tested], vertices).argmax(1)
        accuracy = float((nearest == truth).mean())
        shuffled = np.array([(nearest == rng.permutation(truth)).mean() for _ in range(n_shuffles)])
        found.append(
            Simplex(
                n_vertices=k,
                affine_rank=int((values > 1e-6 * values[0]).sum()),
                thinness=float(values[-1] / values[0]),
                edge_ratio=float(edges.min() / edges.max()),
                accuracy=accuracy,
                chance=float(shuffled.mean()),
                p_value=float((1 + (shuffled >= accuracy).sum()) / (1 + n_shuffles)),
            )
        )
    return found
