"""The taught arm and the control against the baseline of the same schedule, at one number of steps."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from saeflow.config.geometry import SCHEDULED, SHUFFLED, TEACHER
from saeflow.geometry.resampling import LEVEL

PARITY = 0.005
"""How much less of the variance or cross-entropy a taught SAE may recover and still be at parity."""
GAIN = 0.10
"""Least gain in purity."""
DROP = 0.20
"""Least relative drop of leakage."""
COLUMNS = ["comparison", "quantity", "target", "value", "low", "high", "n_seeds", "verdict"]


def compare(
    metrics: pd.DataFrame, concepts: pd.DataFrame, step: int, n_resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """A row per comparison and quantity: target, value, 95 % interval, verdict.

    Values are paired by seed. Intervals resample concepts and seeds together where a quantity is one of concepts, and
    seeds alone for reconstruction. For the shuffled teacher the same targets are set, and "pass" there would mean that
    the gain is not the teacher's. Empty where an arm is missing.
    """
    rows = []
    for arm in (TEACHER, SHUFFLED):
        name = f"{arm} against {SCHEDULED}"
        if not {arm, SCHEDULED} <= set(metrics["arm"]):
            continue
        a, b = (_cube(concepts, which, step) for which in (arm, SCHEDULED))
        for quantity, target, statistic, reached in _quantities():
            value, low, high = _interval(a, b, statistic, n_resamples, rng)
            rows.append(
                (name, quantity, target, value, low, high, len(a["purity"]), "pass" if reached(value) else "fail")
            )
        for metric in ("ev", "ce_recovered"):
            x, y = (_by_seed(metrics, which, step)[metric].to_numpy() for which in (arm, SCHEDULED))
            drawn = rng.integers(len(x), size=(n_resamples, len(x)))
            low, high = np.quantile((x - y)[drawn].mean(1), _ENDS)
            value = float((x - y).mean())
            verdict = "pass" if value >= -PARITY else "fail"
            rows.append((name, f"{metric}, difference", f">= -{PARITY}", value, low, high, len(x), verdict))
    return pd.DataFrame(rows, columns=COLUMNS)


_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
Cube = dict[str, np.ndarray]
Statistic = Callable[[Cube, Cube], float]


def _quantities() -> list[tuple[str, str, Statistic, Callable[[float], bool]]]:
    gain, drop = f">= +{GAIN}", f"<= -{DROP:.0%}"

    def relative(of: Callable[[Cube], float]) -> Statistic:
        return lambda a, b: of(a) / of(b) - 1

    def fell(value: float) -> bool:
        return value <= -DROP

    return [
        (
            "purity, difference",
            gain,
            lambda a, b: np.nanmean(a["purity"]) - np.nanmean(b["purity"]),
            lambda v: v >= GAIN,
        ),
        ("leak mass, relative", drop, relative(lambda c: c["elsewhere"].sum() / max(c["activity"].sum(), 1e-12)), fell),
        ("steering leak (mean), relative", drop, relative(lambda c: np.nanmean(c["steering_leak"])), fell),
        ("steering leak (median), relative", drop, relative(lambda c: np.nanmedian(c["steering_leak"])), fell),
        ("steering KL (median), relative", drop, relative(lambda c: np.nanmedian(c["steering_kl"])), fell),
    ]


def _by_seed(table: pd.DataFrame, arm: str, step: int) -> pd.DataFrame:
    return table[(table["arm"] == arm) & (table["step"] == step)].sort_values("seed")


def _cube(concepts: pd.DataFrame, arm: str, step: int) -> Cube:
    """Values [seeds, concepts] of an arm."""
    rows = _by_seed(concepts, arm, step)
    names = ("purity", "elsewhere", "activity", "steering_leak", "steering_kl")
    order = list(dict.fromkeys(rows["concept"]))
    return {name: rows.pivot(index="seed", columns="concept", values=name)[order].to_numpy(float) for name in names}


def _interval(a: Cube, b: Cube, statistic: Statistic, n: int, rng: np.random.Generator) -> tuple[float, float, float]:
    n_seeds, n_concepts = a["purity"].shape
    values = []
    for _ in range(n):
        where = np.ix_(rng.integers(n_seeds, size=n_seeds), rng.integers(n_concepts, size=n_concepts))
        values.append(statistic({k: v[where] for k, v in a.items()}, {k: v[where] for k, v in b.items()}))
    low, high = np.nanquantile(values, _ENDS)
    return float(statistic(a, b)), float(low), float(high)
