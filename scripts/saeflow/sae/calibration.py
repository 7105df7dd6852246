"""Meet a target L0: choose the sparsity penalty, then shift the thresholds.

Two steps, which know nothing of how an SAE is trained. `calibrate` asks a callable for SAEs at many penalties at once
(one stacked batch), reads the penalty for the target off the curve of log L0 against log penalty, and trains once more
around it; SAEs that differ by the network or the seed alone start there. `adjust_threshold` then moves all thresholds
by one amount, so that the calibration rows have the target number of active latents to the last one.
"""

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.sae.architectures import Gated, JumpReLU, ReLU, SparseAutoencoder, TopK
from saeflow.sae.codes import batches_of
from saeflow.sae.penalty_search import Calibration, CalibrationError, Goal, Search, interpolate_penalty

Trained = TypeVar("Trained")
Key = TypeVar("Key", bound=Hashable)

__all__ = [
    "Calibration",
    "CalibrationError",
    "Goal",
    "adjust_threshold",
    "calibrate",
    "calibrate_many",
    "interpolate_penalty",
    "penalty_grid",
    "shift_thresholds",
    "threshold_shift",
]


def penalty_grid(low: float, high: float, n: int) -> list[float]:
    """n penalties from low to high, equally spaced in the logarithm."""
    if not (0 < low < high and n >= 2):
        raise ValueError(f"penalty grid: low {low:g}, high {high:g}, n {n}; expected 0 < low < high and n >= 2")
    return np.geomspace(low, high, n).tolist()


def calibrate(
    train: Callable[[list[float]], Sequence[Trained]],
    l0_of: Callable[[Trained], float],
    goal: Goal,
    *,
    tolerance: float = 0.05,
    extensions: int = 3,
    refinements: int = 2,
) -> Calibration[Trained]:
    """Find the penalty at which training ends at a target L0.

    Train the grid; while the target is outside the L0 reached, go on by three steps of the grid on that side; until the
    target is met, interpolate and train three penalties around that value; take the SAE with the nearest L0. Each round
    is one call of `train`, a stacked batch. A distance that remains is logged: `adjust_threshold` takes it away.

    Arguments:
        train: SAEs (or whatever holds them, one per seed) for a list of penalties, in its order. With the same steps,
            data and seed at each call, L0 is a smooth curve.
        l0_of: mean active latents per vector of one of them, on rows that it was not trained on; NaN of one whose
            training diverged, which does not count.
        tolerance: relative distance of L0 from the target that ends the search.
        extensions: most rounds beyond the grid.
        refinements: most rounds around an interpolated penalty.

    Raises:
        CalibrationError: target still outside the L0 reached after all extensions.
    """

    def train_one(asked: list[tuple[None, float]]) -> Sequence[Trained]:
        return train([penalty for _, penalty in asked])

    return calibrate_many(
        train_one, l0_of, {None: goal}, tolerance=tolerance, extensions=extensions, refinements=refinements
    )[None]


def calibrate_many(
    train: Callable[[list[tuple[Key, float]]], Sequence[Trained]],
    l0_of: Callable[[Trained], float],
    goals: Mapping[Key, Goal],
    *,
    like: Mapping[Key, Key] | None = None,
    tolerance: float = 0.05,
    extensions: int = 3,
    refinements: int = 2,
    failed: Callable[[Key, CalibrationError], None] | None = None,
) -> dict[Key, Calibration[Trained]]:
    """`calibrate` for several variants or stores in step, so that each round is one pass over the activations.

    Arguments:
        train: SAEs for a list of (key, penalty), in its order; keys are those of `goals`. A key that has met its target
            is asked for no more.
        goals: what to reach, by key.
        like: keys, each with one of equal goal that is not in here and expected to need about the same penalty. Instead
            of the grid, three penalties around the other's are trained, once its curve passes the target; if the
            target is not met, the other's curve is moved to the L0 found; if that does not help, the grid follows.
        failed: told of a key whose target is not reached; the others go on, and the key is left out.

    Raises:
        CalibrationError: as `calibrate`, without `failed`; names the key.
    """
    searches: dict[Key, Search[Trained]] = {}
    for key in sorted(goals, key=lambda key: key in (like or {})):
        other = searches[like[key]] if like and key in like else None
        searches[key] = Search(goals[key], "SAE" if key is None else str(key), tolerance, other)
    waiting: dict[Key, list[float]] = {}
    rounds: dict[Key, Generator[list[float], None, None]] = {}
    lost: set[Key] = set()
    while len(rounds) < len(goals) or waiting:
        for key, search in searches.items():
            if key in rounds:
                continue
            if search.like is not None and like[key] in rounds and like[key] not in waiting:
                # Where the other found nothing, this one starts from the grid.
                search.like = search.like if search.like.has_penalty() else None
            if search.like is None or search.like.has_penalty():
                rounds[key] = search.rounds(extensions, refinements)
                waiting[key] = next(rounds[key])
        asked = [(key, penalty) for key in goals for penalty in waiting.get(key, ())]
        trained = dict(zip(asked, train(asked), strict=True))
        for key, penalties in list(waiting.items()):
            searches[key].take({penalty: trained[key, penalty] for penalty in penalties}, l0_of)
            try:
                following = next(rounds[key], None)
            except CalibrationError as error:
                if failed is None:
                    raise
                failed(key, error)
                following = None
                lost.add(key)
            if following is None:
                del waiting[key]
            else:
                waiting[key] = following
    return {key: searches[key].found() for key in goals if key not in lost}


@torch.no_grad()
def threshold_shift(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"],
    target_l0: float,
    batch_size: int = 2048,
    *,
    at_most: bool = False,
) -> float:
    """The amount by which all thresholds must rise so that a target number of latents is active.

    It lies half way between the last preactivation (less its threshold) that should pass and the first that should not.

    Arguments:
        x: calibration rows, in the store's units: not those on which the SAE is evaluated.  Shape [n, d_in].
        target_l0: mean active latents per row; met to 1/n but for equal values and the rounding of thresholds.
        batch_size: most rows at a time. Memory: one dense batch of latents, and 2 n target_l0 numbers.
        at_most: the target is a bound, as the k of BatchTopK: where fewer latents can be active, all of them are.

    Raises:
        CalibrationError: too few latents could be active on these rows, whatever the thresholds.
    """
    n_active = round(target_l0 * len(x))
    if n_active < 1:
        raise CalibrationError(f"target_l0 {target_l0:g} on {len(x)} rows asks for no active latent")
    best = torch.empty(0, dtype=sae.dtype, device=sae.device)
    bound = -torch.inf
    for batch in batches_of(x, batch_size):
        excess, eligible = _excess(sae, batch.to(sae.device))
        best = torch.cat([best, excess[eligible & (excess > bound)]])
        if len(best) > 2 * (n_active + 1):
            best = best.topk(n_active + 1, sorted=False).values
            bound = best.min()
    if len(best) < n_active:
        if at_most and not isinstance(sae, Gated):
            # Every positive preactivation passes a threshold of 0.
            return -float(sae.threshold.max()) if isinstance(sae, JumpReLU) else 0.0
        raise CalibrationError(
            f"target_l0 {target_l0:g}: thresholds can give at most {len(best) / len(x):.4g}; "
            "train with a smaller penalty, or set a smaller target_l0"
        )
    best = best.sort(descending=True).values
    last = best[n_active - 1]
    # Where all are wanted, no next one says how low is low enough; the step must survive the rounding of a threshold.
    first_out = best[n_active] if len(best) > n_active else last - 1e-5 * best.abs().max()
    middle = (last + first_out) / 2
    return float(middle if middle < last else first_out)


def shift_thresholds(sae: SparseAutoencoder, amount: float) -> JumpReLU | Gated:
    """The SAE with every threshold `amount` higher, in units of the preactivations.

    ReLU and TopK SAEs become `JumpReLU` with this one threshold; in a `Gated` SAE the bias of the gate falls.
    """
    match sae:
        case Gated():
            return sae.replace(b_gate=sae.b_gate - amount)
        case JumpReLU():
            return sae.replace(threshold=sae.threshold + amount)
        case ReLU() | TopK():
            shared = {name: getattr(sae, name) for name in sae.shapes}
            shifted = JumpReLU(**shared, threshold=torch.full_like(sae.b_enc, amount))
            shifted.metadata = dict(sae.metadata)
            return shifted
    raise TypeError(f"{type(sae).__name__} has no thresholds to shift")


def adjust_threshold(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"],
    target_l0: float,
    batch_size: int = 2048,
    *,
    at_most: bool = False,
) -> JumpReLU | Gated:
    """The SAE with its thresholds shifted by `threshold_shift`, to a target L0 on calibration rows."""
    return shift_thresholds(sae, threshold_shift(sae, x, target_l0, batch_size, at_most=at_most))


def _excess(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"]) -> tuple[Tensor, Tensor]:
    """How far each preactivation is above its threshold, and where a lower threshold would give a positive latent."""
    p = sae.preactivations(x)
    match sae:
        case Gated():
            return p, sae.magnitudes(p) > 0
        case JumpReLU():
            return p - sae.threshold, p > 0
    return p, p > 0
