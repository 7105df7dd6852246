"""Which latents are worth asking about: neither of one prompt nor of all, neither too rare nor everywhere."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from saeflow.inversion.selection.activity import Activity


@dataclass(frozen=True)
class Filters:
    """Bounds, both ends included.

    Arguments:
        entropy: of `Activity.entropy`.
        density: share of tokens on which a latent fires.
    """

    entropy: tuple[float, float] = (0.2, 0.9)
    density: tuple[float, float] = (5e-4, 0.1)


class NothingLeftError(ValueError):
    """Filters that no latent passes; says how many fail at each."""


def passes(activity: Activity, filters: Filters) -> dict[str, Bool[np.ndarray, " d_sae"]]:
    """Which latents fire at all, and pass each filter."""
    bounds = {"entropy": (activity.entropy, filters.entropy), "density": (activity.density, filters.density)}
    found = {"fires": activity.counts > 0}
    return found | {name: (values >= low) & (values <= high) for name, (values, (low, high)) in bounds.items()}


def kept(activity: Activity, filters: Filters, at_least: int = 1) -> np.ndarray:
    """Latents that pass all filters, ascending.

    Raises:
        NothingLeftError: fewer than `at_least`.
    """
    found = passes(activity, filters)
    chosen = np.flatnonzero(np.logical_and.reduce(list(found.values())))
    if len(chosen) < at_least:
        said = ", ".join(f"{name} {int(mask.sum())}" for name, mask in found.items())
        raise NothingLeftError(
            f"inversion.data: {len(chosen)} of {len(activity.counts)} latents pass all filters, {at_least} are needed "
            f"(each alone: {said}); widen `entropy` or `density`"
        )
    return chosen
