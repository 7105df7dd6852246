"""The search for the sparsity penalty of one SAE: what was trained at which penalty, and what should be next."""

import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, isotonic_regression

log = logging.getLogger(__name__)

Trained = TypeVar("Trained")

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


class Search(Generic[Trained]):
    """What was trained for one goal, and what should be next.

    Arguments:
        like: the search that this one starts from.
    """

    def __init__(self, goal: Goal, name: str, tolerance: float, like: "Search[Trained] | None") -> None:
        self.goal, self.name, self.tolerance, self.like = goal, name, tolerance, like
        self.aim = goal.target_l0 * (1 + tolerance / 2) if goal.from_above else goal.target_l0
        self.runs: dict[float, tuple[float, Trained]] = {}
        self.diverged: dict[float, Trained] = {}

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
        if not self.runs:
            return
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
            l0 = l0_of(one)
            if math.isnan(l0):
                self.diverged[penalty] = one
                log.warning("%s: the training with penalty %.4g diverged", self.name, penalty)
                continue
            self.runs[penalty] = (l0, one)
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
            what = "; set target_l0 to one that was reached, give a penalty instead of it, or train for more steps"
            if self.diverged:
                what += f"; {len(self.diverged)} trainings diverged: a smaller learning_rate makes them count"
            raise CalibrationError(f"{self.name}: {error}{what}") from None

    def found(self) -> Calibration[Trained]:
        """The SAE nearest to the target; one that diverged if all did."""
        if not self.runs:
            penalty, trained = next(iter(self.diverged.items()))
            return Calibration(penalty, math.nan, trained, ())
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
