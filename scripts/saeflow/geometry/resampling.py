"""Percentile intervals by resampling whole parents: words and children of one parent are not independent."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95


def interval(
    values: Float[np.ndarray, "*splits n"],
    parents: Int[np.ndarray, " n"],
    statistic: Callable[[np.ndarray], float],
    n_resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """A statistic and its 95 % percentile interval over resampled parents.

    Arguments:
        values: one per child (or parent) on the last axis; NaN where there is none.
        parents: parent of each.
        statistic: of an array like `values`, with any number of columns.
    Returns:
        value, low end, high end.
    """
    columns = [np.flatnonzero(parents == p) for p in np.unique(parents)]
    drawn = rng.integers(len(columns), size=(n_resamples, len(columns)))
    resampled = [statistic(values[..., np.concatenate([columns[i] for i in row])]) for row in drawn]
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(statistic(values)), float(low), float(high)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter NaN of one seed."""
    array = np.asarray(values, float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else float("nan")
