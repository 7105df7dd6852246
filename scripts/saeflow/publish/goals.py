"""What methods are to reach on a task, and which row comes closest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from saeflow.publish.injection_tables import penultimate
from saeflow.publish.older_numbers import same_task

FILE = Path(__file__).with_suffix(".yaml")


def of_task(**task: Any) -> list[dict[str, Any]]:
    """Goals of a task, as `older_numbers.of_task` takes it; none for others."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content["goals"] if same_task(content["task"], **task) else []


def closest(summary: pd.DataFrame, goals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each goal `text`, the `row` whose largest shortfall is the smallest, that `shortfall` and its `metric`.

    A shortfall is at most 0 where the goal is met. A goal that no row of the summary is of is left out.
    """
    found = []
    for goal in goals:
        rows = summary[summary["tier"].isin(goal["tiers"]) & (summary["n_pairs"] > 0)]
        if goal.get("penultimate"):
            rows = rows[penultimate(rows["site"])]
        if rows.empty:
            continue
        short = pd.DataFrame(
            {name: bound - rows[name] for name, bound in goal["least"].items()}
            | {name: rows[name] - bound for name, bound in goal["most"].items()}
        ).fillna(1.0)
        row = short.max(axis=1).idxmin()
        metric = short.loc[row].idxmax()
        found.append({"text": _text(goal), "row": rows.loc[row].to_dict(), "shortfall": short.loc[row, metric]})
        found[-1]["metric"] = metric.replace("_", " ")
    return found


def _text(goal: Mapping[str, Any]) -> str:
    bounds = [f"{name.replace('_', ' ')} ≥ {100 * bound:g}" for name, bound in goal["least"].items()]
    bounds += [f"{name.replace('_', ' ')} ≤ {100 * bound:g}" for name, bound in goal["most"].items()]
    return f"{goal['text']}: {', '.join(bounds)}"
