"""The verdict of phase 1, which can fail: what a hierarchy in the unembedding must show, beside what says nothing."""

import pandas as pd

from saeflow.geometry.hierarchy import Measured

ANGLE_RANGE = (80.0, 100.0)
"""Where the median crossfit angle must lie, in degrees."""
CONTROL_MARGIN = 15.0
"""How much further from 90 degrees the medians of the controls must be."""
MEMBERSHIP_AUC = 0.9
NOISE_AUC = 0.05
"""How far from 0.5 the AUC on shuffled rows may be."""
LEFT_OUT_AUC = 0.8
UNINFORMATIVE = ("nested angle", "unit-length angle")


def verdict(measured: Measured) -> pd.DataFrame:
    """A row per condition: `statistic`, `target`, `value`, `low`, `high`, `verdict` (pass, fail or uninformative).

    The hierarchy passes when no row says fail.
    """
    v = measured.value
    margin = abs(v("crossfit angle") - 90) + CONTROL_MARGIN
    conditions = [
        ("crossfit angle", "80 to 100", ANGLE_RANGE[0] <= v("crossfit angle") <= ANGLE_RANGE[1]),
        *(
            (name, f"{margin:.1f} or more from 90", abs(v(name) - 90) >= margin)
            for name in ("crossfit angle, random parent", "crossfit angle, shuffled rows")
        ),
        *(
            (f"{level} AUC", f">= {MEMBERSHIP_AUC}", v(f"{level} AUC") >= MEMBERSHIP_AUC)
            for level in ("parent", "child")
        ),
        *(
            (f"{level} AUC, shuffled rows", "0.45 to 0.55", abs(v(f"{level} AUC, shuffled rows") - 0.5) <= NOISE_AUC)
            for level in ("parent", "child")
        ),
        ("left-out child AUC", f">= {LEFT_OUT_AUC}", v("left-out child AUC") >= LEFT_OUT_AUC),
    ]
    rows = [(name, target, "pass" if holds else "fail") for name, target, holds in conditions]
    named = {name for name, *_ in rows}
    for name in measured.values["statistic"]:
        if name.startswith(UNINFORMATIVE):
            rows.append((name, "", "uninformative"))
        elif name not in named:
            rows.append((name, "", ""))
    table = pd.DataFrame(rows, columns=["statistic", "target", "verdict"])
    return table.merge(measured.values, on="statistic")[["statistic", "target", "value", "low", "high", "verdict"]]


def passes(table: pd.DataFrame) -> bool:
    """Whether a table of `verdict` has no condition that fails."""
    return bool((table["verdict"] != "fail").all())
