"""What adding a direction at the final layer does to the model's next-token distribution.

Directions are in whitened coordinates, where the logit of y changes by g(y) . v; a vocabulary mean of g is 0, so these
changes are centred.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import log_softmax, softmax

MASS = 0.25
"""Mass of a concept's words that a step is scaled to for `kl_at_mass`."""


class Effect(NamedTuple):
    """Centred logit changes of one direction."""

    target: float
    """Mean over the concept's words."""
    other: float
    """Mean absolute change of other concepts' words."""
    other_rms: float
    """Root mean square change of other concepts' words."""

    @property
    def leak(self) -> float:
        """Steering leak: `other_rms` over |target|."""
        return self.other_rms / max(abs(self.target), 1e-12)


def effect(change: Float[np.ndarray, " n"], own: Bool[np.ndarray, " n"], others: Bool[np.ndarray, " n"]) -> Effect:
    """Effect of a direction from its logit changes on words: the concept's own, and those of other concepts."""
    other = change[others]
    return Effect(float(change[own].mean()), float(np.abs(other).mean()), float(np.sqrt((other**2).mean())))


def divergence(base: Float[np.ndarray, "n v"], steered: Float[np.ndarray, "n v"]) -> Float[np.ndarray, " n"]:
    """KL(steered || base) of each row of logits, in nats."""
    p, q = log_softmax(steered, axis=1), log_softmax(base, axis=1)
    return (np.exp(p) * (p - q)).sum(1)


def ratio_divergence(
    base: Float[np.ndarray, "n v"], change: Float[np.ndarray, " v"], words: Bool[np.ndarray, " v"]
) -> Float[np.ndarray, " n"]:
    """KL of the distribution over a concept's words alone: 0 if a step moves them all by the same.

    Park et al.: moving along a parent must not change the ratios among what it contains.
    """
    return divergence(base[:, words], base[:, words] + change[words])


def dose_response(
    base: Float[np.ndarray, "n v"],
    change: Float[np.ndarray, " v"],
    own: Bool[np.ndarray, " v"],
    others: Bool[np.ndarray, " v"],
    doses: Float[np.ndarray, " k"],
) -> list[tuple[float, float, float]]:
    """Mean mass of a concept's words, of other concepts' words, and KL to the unsteered model, for each dose."""
    rows = []
    for dose in doses:
        steered = base + dose * change
        p = softmax(steered, axis=1)
        rows.append((p[:, own].sum(1).mean(), p[:, others].sum(1).mean(), divergence(base, steered).mean()))
    return [tuple(map(float, row)) for row in rows]


def kl_at_mass(
    base: Float[np.ndarray, "n v"], change: Float[np.ndarray, " v"], own: Bool[np.ndarray, " v"], mass: float = MASS
) -> tuple[float, float]:
    """The dose at which the words' mean mass reaches 0.25, and mean KL(steered || base) there.

    The mass is monotone near the smallest such dose, which is found by doubling and 12 bisections; infinity and NaN
    where even a dose that moves the logits by 60 does not reach it.
    """
    top = 60.0 / max(float(np.abs(change).max()), 1e-12)

    def reached(dose: float) -> bool:
        return float(softmax(base + dose * change, axis=1)[:, own].sum(1).mean()) >= mass

    high = top / 64
    while not reached(high):
        high *= 2
        if high > top:
            return float("inf"), float("nan")
    low = 0.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high, float(divergence(base, base + high * change).mean())
