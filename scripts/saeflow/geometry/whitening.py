"""The causal inner product of a model's unembedding, as coordinates in which it is the dot product.

Park et al. 2024 (2311.03658) and 2025 (2406.01506): with Sigma the covariance of the unembedding rows gamma(y) over the
vocabulary, g(y) = Sigma^(-1/2) (gamma(y) - mean). Vectors of the residual stream go by the inverse map, Sigma^(1/2) h,
so that h . gamma(y) = (Sigma^(1/2) h) . g(y) + h . mean, whose last term no softmax sees.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_BLOCK_BYTES = 1 << 27


@dataclass(frozen=True)
class Whitening:
    """Coordinates of one unembedding.

    Arguments:
        mean: mean row.  Shape [d].
        root, inverse_root: symmetric Sigma^(1/2) and Sigma^(-1/2), in float64.  Shape [d, d].
        eigenvalues: of Sigma before they were floored, descending.  Shape [d].
        floor: least eigenvalue that the roots are made of.
    """

    mean: Float[np.ndarray, " d"]
    root: Float[np.ndarray, "d d"]
    inverse_root: Float[np.ndarray, "d d"]
    eigenvalues: Float[np.ndarray, " d"]
    floor: float

    def unembeddings(self, gamma: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """g of unembedding rows."""
        return (gamma - self.mean) @ self.inverse_root

    def residuals(self, h: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Sigma^(1/2) h of vectors that the unembedding reads."""
        return h @ self.root

    def to_residual(self, v: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The residual-stream vectors whose coordinates are v: the inverse of `residuals`."""
        return v @ self.inverse_root

    @property
    def n_floored(self) -> int:
        """Eigenvalues that were raised to the floor."""
        return int((self.eigenvalues < self.floor).sum())

    @property
    def effective_rank(self) -> float:
        """exp(-sum_i p_i log p_i) with p the eigenvalues over their sum (Roy and Vetterli 2007)."""
        p = self.eigenvalues[self.eigenvalues > 0] / self.eigenvalues[self.eigenvalues > 0].sum()
        return float(np.exp(-(p * np.log(p)).sum()))


def moments(
    gamma: Float[np.ndarray, "v d"], rows: Int[np.ndarray, " n"] | Bool[np.ndarray, " v"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance (divided by n) of some rows, in float64: two passes in blocks, never V x V."""
    chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
    block = max(1, _BLOCK_BYTES // (8 * gamma.shape[1]))
    parts = [chosen[start : start + block] for start in range(0, len(chosen), block)]
    mean = sum(gamma[part].sum(0, dtype=np.float64) for part in parts) / len(chosen)
    covariance = np.zeros((gamma.shape[1],) * 2)
    for part in parts:
        centered = gamma[part].astype(np.float64) - mean
        covariance += centered.T @ centered
    return mean, covariance / len(chosen)


def fit(
    gamma: Float[np.ndarray, "v d"], rows: Int[np.ndarray, " n"] | Bool[np.ndarray, " v"], floor: float = 1e-6
) -> Whitening:
    """Whitening of the given rows of an unembedding.

    Arguments:
        gamma: unembedding, one row per token, any float type.
        rows: the tokens that count: neither special tokens nor rows that no token has.
        floor: least eigenvalue, as a share of the largest.
    Raises:
        ValueError: fewer rows than dimensions.
    """
    mean, covariance = moments(gamma, rows)
    n = int(rows.sum()) if rows.dtype == bool else len(rows)
    if n <= gamma.shape[1]:
        raise ValueError(f"{n} rows of the unembedding do not determine a covariance of width {gamma.shape[1]}")
    values, vectors = np.linalg.eigh(covariance)
    least = floor * values[-1]
    roots = np.sqrt(np.maximum(values, least))
    return Whitening(mean, (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T, values[::-1].copy(), least)


def euclidean(gamma: Float[np.ndarray, "v d"], rows: Int[np.ndarray, " n"] | Bool[np.ndarray, " v"]) -> Whitening:
    """No whitening: one scale for all dimensions, so that the mean variance is 1.  The control of `fit`."""
    mean, covariance = moments(gamma, rows)
    values = np.linalg.eigvalsh(covariance)
    scale = np.sqrt(values.mean())
    eye = np.eye(gamma.shape[1])
    return Whitening(mean, eye * scale, eye / scale, values[::-1].copy(), 0.0)


def residual_product(
    a: Float[np.ndarray, " d"], b: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"]
) -> float:
    """<a, b> = a' Sigma b: the causal inner product of vectors of the residual stream."""
    return float(a @ covariance @ b)


def unembedding_product(
    u: Float[np.ndarray, " d"], v: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"]
) -> float:
    """<u, v> = u' Sigma^(-1) v, by Cholesky: the causal inner product of vectors of unembedding type."""
    factor = np.linalg.cholesky(covariance)
    return float(np.linalg.solve(factor, u) @ np.linalg.solve(factor, v))
