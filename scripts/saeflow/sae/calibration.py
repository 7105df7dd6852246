"""Meet a target L0: choose the sparsity penalty, then shift the thresholds.

Two steps, which know nothing of how an SAE is trained. `calibrate` asks a callable for SAEs at many penalties at once
(one stacked batch), reads the penalty for the target off the curve of log L0 against log penalty, and trains once more
around it; SAEs that differ by the network or the seed alone start there. `adjust_threshold` then moves all thresholds
by one amount, so that the calibration rows have the target number of active latents to the last one.
"""

import logging
import math
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, isotonic_regression
from torch import Tensor

from saeflow.sae.architectures import Gated, JumpReLU, ReLU, SparseAutoencoder, TopK
from saeflow.sae.codes import batches_of

log = logging.getLogger(__name__)

Trained = TypeVar("Trained")
Key = TypeVar("Key", bound=Hashable)

# An SAE whose latents are all dead still needs a place on the logarithmic axis.
_LEAST_L0 = 1e-3
# How far apart a search tries penalties that starts where another is, in tolerances. L0 of three networks' last layers
# at one penalty lay within 4 %, and L0 moves by half to two thirds of what the penalty does (relative, around L0 8):
# three penalties so far apart find 5 % of the target if the other's is up to 9 % off.
_APART = 1.5


class CalibrationError(ValueError):
    """A target L0 that cannot be met; says what was reached and what would be right."""


@dataclass(frozen=True)
class Goal:
    """What a search for the penalty is after.

    Arguments:
        target_l0: mean active latents per activation vector.
        grid: penalties to start from, ascending, at least two.
        from_above: take an SAE with at least the target L0, and aim half the tolerance higher: what a ReLU SAE needs,
            whose thresholds can only rise.
    """

    target_l0: float
    grid: Sequence[float]
    from_above: bool = False

    def __post_init__(self) -> None:
        if self.target_l0 <= 0:
            raise ValueError(f"target_l0: {self.target_l0:g} is not positive")
        if len(self.grid) < 2 or sorted(set(self.grid)) != list(self.grid) or self.grid[0] <= 0:
            raise ValueError(f"penalty grid {list(self.grid)}: expected at least two ascending positive numbers")


@dataclass(frozen=True)
class Calibration(Generic[Trained]):
    """The outcome of a search for the penalty.

    Arguments:
        penalty: of the chosen SAE.
        l0: that its latents have before any threshold is shifted.
        trained: what `train` returned for that penalty.
        points: every (penalty, L0) that was trained, ascending in the penalty.
    """

    penalty: float
    l0: float
    trained: Trained
    points: tuple[tuple[float, float], ...]


def penalty_grid(low: float, high: float, n: int) -> list[float]:
    """n penalties from low to high, equally spaced in the logarithm."""
    if not (0 < low < high and n >= 2):
        raise ValueError(f"penalty grid: low {low:g}, high {high:g}, n {n}; expected 0 < low < high and n >= 2")
    return np.geomspace(low, high, n).tolist()


def interpolate_penalty(points: Iterable[tuple[float, float]], target_l0: float) -> float:
    """Penalty at which the curve through (log penalty, log L0) passes the target.

    The points are first made to fall (least-squares isotonic regression): L0 falls with the penalty but for the noise
    of training. The curve is the monotone cubic of Fritsch and Butland (1984): L0 drops ever faster at large penalties,
    where a broken line is far off.

    Arguments:
        points: (penalty, L0), in any order, at least two.
        target_l0: mean active latents per activation vector.

    Raises:
        CalibrationError: target outside the L0 of the points; says which way the penalties should move.
    """
    penalties, l0s = _falling(points)
    if not l0s[-1] <= target_l0 <= l0s[0]:
        direction = "larger" if target_l0 < l0s[-1] else "smaller"
        raise CalibrationError(
            f"target_l0 {target_l0:g} is outside the L0 reached, {l0s[-1]:.4g} to {l0s[0]:.4g}, "
            f"with penalties {penalties[0]:.4g} to {penalties[-1]:.4g}: {direction} penalties are needed"
        )
    curve = PchipInterpolator(np.log(penalties), np.log(l0s) - math.log(target_l0))
    # Rounding must not take the target out of a curve that ends at it.
    ends = [math.log(penalty) for penalty in (penalties[0], penalties[-1])]
    for end in ends:
        if abs(curve(end)) < 1e-9:
            return math.exp(end)
    return math.exp(brentq(curve, *ends))


def _falling(points: Iterable[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Penalties, ascending, and L0 made to fall with them."""
    penalties, l0s = np.array(sorted(points)).T
    return penalties, np.exp(isotonic_regression(np.log(np.maximum(l0s, _LEAST_L0)), increasing=False).x)


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
        l0_of: mean active latents per vector of one of them, on rows that it was not trained on.
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
) -> dict[Key, Calibration[Trained]]:
    """`calibrate` for several variants or stores in step, so that each round is one pass over the activations.

    Arguments:
        train: SAEs for a list of (key, penalty), in its order; keys are those of `goals`. A key that has met its target
            is asked for no more.
        goals: what to reach, by key.
        like: keys, each with one of equal goal that is not in here and expected to need about the same penalty. Instead
            of the grid, three penalties around the other's are trained, once its curve passes the target; if the
            target is not met, the other's curve is moved to the L0 found; if that does not help, the grid follows.

    Raises:
        CalibrationError: as `calibrate`; names the key.
    """
    searches: dict[Key, _Search[Trained]] = {}
    for key in sorted(goals, key=lambda key: key in (like or {})):
        other = searches[like[key]] if like and key in like else None
        searches[key] = _Search(goals[key], "SAE" if key is None else str(key), tolerance, other)
    waiting: dict[Key, list[float]] = {}
    rounds: dict[Key, Generator[list[float], None, None]] = {}
    while len(rounds) < len(goals) or waiting:
        for key, search in searches.items():
            if key not in rounds and (search.like is None or search.like.has_penalty()):
                rounds[key] = search.rounds(extensions, refinements)
                waiting[key] = next(rounds[key])
        asked = [(key, penalty) for key in goals for penalty in waiting.get(key, ())]
        trained = dict(zip(asked, train(asked), strict=True))
        for key, penalties in list(waiting.items()):
            searches[key].take({penalty: trained[key, penalty] for penalty in penalties}, l0_of)
            following = next(rounds[key], None)
            if following is None:
                del waiting[key]
            else:
                waiting[key] = following
    return {key: searches[key].found() for key in goals}


class _Search(Generic[Trained]):
    """What was trained for one goal, and what should be next.

    Arguments:
        like: the search that this one starts from.
    """

    def __init__(self, goal: Goal, name: str, tolerance: float, like: "_Search[Trained] | None") -> None:
        self.goal, self.name, self.tolerance, self.like = goal, name, tolerance, like
        self.aim = goal.target_l0 * (1 + tolerance / 2) if goal.from_above else goal.target_l0
        self.runs: dict[float, tuple[float, Trained]] = {}

    def rounds(self, extensions: int, refinements: int) -> Generator[list[float], None, None]:
        """Penalties to train; to be asked for the next ones when these were taken."""
        if self.like is not None:
            yield self._around(self.like.penalty(), _APART * self.tolerance)
            yield from self._refinements(refinements)
            # Unlike the other, after all: on its own from here.
            self.like = None
        if self._met():
            return
        yield list(self.goal.grid)
        step = self.goal.grid[1] / self.goal.grid[0]
        for _ in range(extensions):
            if self.has_penalty():
                break
            penalties, l0s = _falling(self._curve())
            end, factor = (penalties[-1], step) if self.aim < l0s[-1] else (penalties[0], 1 / step)
            yield [float(end) * factor**i for i in (1, 2, 3)]
        # Refused here, if no penalty was found.
        self.penalty()
        yield from self._refinements(refinements)

    def _refinements(self, most: int) -> Generator[list[float], None, None]:
        """Rounds around the penalty that the curve tells, until one meets the target."""
        for _ in range(most):
            if self._met() or not self.has_penalty():
                return
            # Half the tolerance: L0 moves by about the square of the penalty's factor at most.
            yield self._around(self.penalty(), self.tolerance / 2)

    def take(self, trained: Mapping[float, Trained], l0_of: Callable[[Trained], float]) -> None:
        for penalty, one in trained.items():
            self.runs[penalty] = (l0_of(one), one)
            l0 = self.runs[penalty][0]
            log.info("%s: penalty %.4g gives L0 %.4g (target %g)", self.name, penalty, l0, self.goal.target_l0)

    def has_penalty(self) -> bool:
        """Whether the runs meet the target or enclose it."""
        if not self.runs:
            return False
        _, l0s = _falling(self._curve())
        return self._met() or bool(l0s[-1] <= self.aim <= l0s[0])

    def penalty(self) -> float:
        """The best guess: of the SAE that meets the target, or off the curve."""
        if self._met():
            return self._nearest()
        try:
            return interpolate_penalty(self._curve(), self.aim)
        except CalibrationError as error:
            raise CalibrationError(f"{self.name}: {error}") from None

    def found(self) -> Calibration[Trained]:
        penalty = self._nearest()
        l0, trained = self.runs[penalty]
        if not self._met():
            target = self.goal.target_l0
            log.warning("%s: L0 %.4g is the nearest to target_l0 %g that training reached", self.name, l0, target)
        return Calibration(penalty, l0, trained, tuple(self._points()))

    def _points(self) -> list[tuple[float, float]]:
        return [(penalty, self.runs[penalty][0]) for penalty in sorted(self.runs)]

    def _curve(self) -> list[tuple[float, float]]:
        """The points, and beyond them those of the search that this one is like, moved to meet them on the average."""
        own = self._points()
        if self.like is None:
            return own
        other = self.like._points()
        penalties, l0s = _falling(other)
        shape = PchipInterpolator(np.log(penalties), np.log(l0s))
        apart = np.mean([math.log(max(l0, _LEAST_L0)) - shape(math.log(penalty)) for penalty, l0 in own])
        beyond = [(penalty, l0) for penalty, l0 in other if not own[0][0] <= penalty <= own[-1][0]]
        return own + [(penalty, l0 * math.exp(apart)) for penalty, l0 in beyond]

    def _around(self, center: float, share: float) -> list[float]:
        return [center / (1 + share), center, center * (1 + share)]

    def _nearest(self) -> float | None:
        target = self.goal.target_l0
        allowed = [penalty for penalty, (l0, _) in self.runs.items() if l0 >= target or not self.goal.from_above]
        return min(allowed, key=lambda penalty: (_distance(self.runs[penalty][0], target), penalty), default=None)

    def _met(self) -> bool:
        penalty = self._nearest()
        if penalty is None:
            return False
        return _distance(self.runs[penalty][0], self.goal.target_l0) <= math.log1p(self.tolerance)


def _distance(l0: float, target_l0: float) -> float:
    """Absolute log ratio."""
    return abs(math.log(max(l0, _LEAST_L0) / target_l0))


@torch.no_grad()
def threshold_shift(
    sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], target_l0: float, batch_size: int = 2048
) -> float:
    """The amount by which all thresholds must rise so that a target number of latents is active.

    It lies half way between the last preactivation (less its threshold) that should pass and the first that should not.

    Arguments:
        x: calibration rows, in the store's units: not those on which the SAE is evaluated.  Shape [n, d_in].
        target_l0: mean active latents per row; met to 1/n but for equal values and the rounding of thresholds.
        batch_size: most rows at a time. Memory: one dense batch of latents, and 2 n target_l0 numbers.

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
        raise CalibrationError(
            f"target_l0 {target_l0:g}: thresholds can give at most {len(best) / len(x):.4g}; "
            "train with a smaller penalty"
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
    sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], target_l0: float, batch_size: int = 2048
) -> JumpReLU | Gated:
    """The SAE with its thresholds shifted by `threshold_shift`, to a target L0 on calibration rows."""
    return shift_thresholds(sae, threshold_shift(sae, x, target_l0, batch_size))


def _excess(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"]) -> tuple[Tensor, Tensor]:
    """How far each preactivation is above its threshold, and where a lower threshold would give a positive latent."""
    p = sae.preactivations(x)
    match sae:
        case Gated():
            return p, sae.magnitudes(p) > 0
        case JumpReLU():
            return p - sae.threshold, p > 0
    return p, p > 0
