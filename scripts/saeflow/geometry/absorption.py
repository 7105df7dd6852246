"""Absorption and splitting of a concept's latents, as SAEBench defines them.

Karvonen et al. 2025, "SAEBench" (2503.09532), after Chanin et al. 2024, "A is for Absorption" (2409.14507). SAEBench
asks for a word's first letter; here a concept is a label of contexts, its probe a logistic regression on activations.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

F1_GAIN = 0.03
"""Least gain in F1 for which one more latent counts as a split of the concept."""
ABSORBER_COSINE = 0.1
ABSORBED_SHARE = 0.4
MAX_ABSORBERS = 3
MAX_SPLITS = 5


class Probe(NamedTuple):
    """A linear probe of one concept."""

    direction: Float[np.ndarray, " d"]
    """Unit length."""
    predicts: Bool[np.ndarray, " n"]
    """Its answers on the rows that it is asked about."""


def probe(x: Float[np.ndarray, "n d"], is_label: Bool[np.ndarray, " n"], asked: Float[np.ndarray, "k d"]) -> Probe:
    """Logistic regression with balanced classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=100).fit(x, is_label)
    weights = model.coef_[0]
    return Probe(weights / np.linalg.norm(weights), model.predict(asked).astype(bool))


def splits(z: Float[np.ndarray, "n latents"], is_label: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """Latents that a concept is split over: as many as still raise the F1 of "any of them is active" by 0.03.

    Taken one after another, each the one that raises it most; SAEBench trains a k-sparse probe for each k, here the
    probe is the union. One latent at least.
    """
    active = z > 0
    union = np.zeros(len(z), bool)
    chosen: list[int] = []
    best = 0.0
    for _ in range(MAX_SPLITS):
        fired = active | union[:, None]
        both = (fired & is_label[:, None]).sum(0)
        scores = 2 * both / np.maximum(1, fired.sum(0) + is_label.sum())
        latent = int(scores.argmax())
        if chosen and scores[latent] - best < F1_GAIN:
            break
        chosen.append(latent)
        best = float(scores[latent])
        union |= active[:, latent]
    return np.array(chosen)


def absorption(
    x: Float[np.ndarray, "n d"],
    z: Float[np.ndarray, "n latents"],
    decoder: Float[np.ndarray, "latents d"],
    direction: Float[np.ndarray, " d"],
    main: Int[np.ndarray, " k"],
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Absorption fraction of each row, and whether one latent absorbs all of it, on rows that have the concept.

    With c_i = z_i cos(d_i, w) the part of latent i along the probe w, and x . w what is to be accounted for: the
    absorbers A are the 3 largest c_i > 0 among latents that are not main and have cos(d_i, w) >= 0.1. The fraction is 0
    if main latents account for all, or A for less than 0.4 of it; 1 if main latents give nothing; else
    a / (a + sum of main c_i) with a = min(sum of A, what main latents leave). Absorption is full where no main latent
    is active, x . w >= 0, and the largest c_i has cos >= 0.025 and 0.4 of x . w or more.
    """
    lengths = np.linalg.norm(decoder, axis=1)
    cosines = decoder @ direction / np.maximum(lengths, 1e-12)
    parts = z * cosines
    whole = x @ direction
    by_main = parts[:, main].sum(1)
    candidates = np.where((cosines >= ABSORBER_COSINE)[None] & (parts > 0), parts, 0.0)
    candidates[:, main] = 0.0
    by_others = np.sort(candidates, axis=1)[:, -MAX_ABSORBERS:].sum(1)
    absorbed = np.minimum(by_others, whole - by_main)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.clip(absorbed / (absorbed + by_main), 0, 1)
        too_little = by_others / whole < ABSORBED_SHARE
        top = parts.argmax(1)
        share = parts[np.arange(len(x)), top] / whole
    fraction = np.where(by_main <= 0, 1.0, fraction)
    fraction = np.where((by_main >= whole) | too_little, 0.0, fraction)
    full = (z[:, main] == 0).all(1) & (whole >= 0) & (cosines[top] >= 0.025) & (share >= ABSORBED_SHARE)
    return fraction, full
