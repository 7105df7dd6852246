"""Concept vectors: the direction along which the words of a concept lie at one distance, in whitened coordinates."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from saeflow.config.geometry import FEWEST_WORDS


def ledoit_wolf_shrinkage(X: Float[np.ndarray, "n d"]) -> tuple[float, float]:
    """Shrinkage s and scale mu of (1 - s) S + s mu I, S the covariance of centred rows (divided by n).

    Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", as scikit-learn has
    it; through the Gram matrix of the smaller side, O(n d min(n, d)).
    """
    n, d = X.shape
    lengths = np.einsum("nd,nd->n", X, X)
    gram = X @ X.T if n < d else X.T @ X
    trace = lengths.sum() / n
    mu = trace / d
    square = (gram * gram).sum() / n**2
    beta = ((lengths**2).sum() / n - square) / (d * n)
    delta = (square - 2 * mu * trace + d * mu**2) / d
    beta = min(beta, delta)
    return (beta / delta if beta > 0 else 0.0), mu


def concept_vector(g: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """l = (m . u) u with m the mean row, C = Ledoit-Wolf covariance and u = C^-1 m / |C^-1 m|.

    Park et al. 2025 (2406.01506), equation of section 4 on the LDA direction; the published code inverts C by `pinv`,
    here it is solved by Cholesky, in the space of the words where they are fewer than dimensions (Woodbury's identity).

    Arguments:
        g: whitened unembedding rows of the concept's words.
    Raises:
        ValueError: fewer than three words, which have no shrinkage, or words that do not differ.
    """
    n, d = g.shape
    if n < FEWEST_WORDS:
        raise ValueError(f"a concept vector needs three words or more, not {n}")
    m = g.mean(0)
    X = g - m
    shrinkage, mu = ledoit_wolf_shrinkage(X)
    ridge = shrinkage * mu
    if ridge <= 1e-12 * mu or mu == 0:
        raise ValueError(f"{n} words whose covariance cannot be shrunk: they do not differ")
    weight = (1 - shrinkage) / n
    if weight <= 0:
        u = m
    elif n < d:
        inner = X @ X.T
        inner[np.diag_indices(n)] += ridge / weight
        u = m - X.T @ cho_solve(cho_factor(inner, lower=True), X @ m)
    else:
        C = weight * (X.T @ X)
        C[np.diag_indices(d)] += ridge
        u = cho_solve(cho_factor(C, lower=True), m)
    u = u / np.linalg.norm(u)
    return (m @ u) * u


def concept_vectors(g: Float[np.ndarray, "v d"], sets: Sequence[np.ndarray]) -> Float[np.ndarray, "n d"]:
    """A concept vector per set of row indices."""
    return np.stack([concept_vector(g[rows]) for rows in sets])


def projections(g: Float[np.ndarray, "n d"], vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    """g . l / |l|^2: 1 on average for the words that l was fitted on."""
    return g @ vector / (vector @ vector)


def angles(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Angle between rows, in degrees."""
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))
