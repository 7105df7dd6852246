"""Numbers of earlier write-ups of the same task: shown beside ours and judged by one rule; they change nothing."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from saeflow.publish.injection_tables import tier_order

FILE = Path(__file__).with_suffix(".yaml")
MARGIN = 0.05
"""How far a share may fall short of a stated one and still count as reached."""
_HIGHER_IS_BETTER = {"transfer": True, "preservation": True, "specificity": False}


def of_task(**task: Any) -> dict[str, dict[str, float]]:
    """Stated shares by method and metric, if the study's task is the one that they are of; else none.

    Arguments:
        task: `dataset`, `target_classes`, `source_classes`, `concept` and `lookalike` of the study.
    """
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content["methods"] if same_task(content["task"], **task) else {}


def same_task(
    stated: Mapping[str, Any],
    *,
    dataset: str,
    target_classes: Collection[int],
    source_classes: Collection[int],
    concept: int,
    lookalike: int,
) -> bool:
    """Whether a study's task is the stated one."""
    return (
        dataset in stated["datasets"]
        and set(target_classes) == set(stated["target_classes"])
        and set(source_classes) == set(stated["source_classes"])
        and (concept, lookalike) == (stated["concept"], stated["lookalike"])
    )


def beside(summary: pd.DataFrame, stated: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """A summary with the stated numbers as `older_<metric>`, and a `verdict` on each row that has some.

    "reproduced": the row's mean over pairs and seeds is at least as good as every number stated, within `MARGIN`;
    "needs a higher tier": it is not, but a variant of the same method that knows more is; else "not reproduced".
    Without stated numbers for any of its methods the summary stays as it is.
    """
    if not stated.keys() & set(summary["method"]):
        return summary
    table = summary.copy()
    for metric in _HIGHER_IS_BETTER:
        table[f"older_{metric}"] = [stated.get(method, {}).get(metric, float("nan")) for method in table["method"]]
    reached = [row.method in stated and _reaches(row._asdict(), stated[row.method]) for row in table.itertuples()]
    best = {}  # the least tier at which each method reaches what is stated
    for row, good in zip(table.itertuples(), reached, strict=True):
        if good:
            best[row.method] = min(best.get(row.method, row.tier), row.tier, key=tier_order)
    verdicts = []
    for row, good in zip(table.itertuples(), reached, strict=True):
        if row.method not in stated or not row.n_pairs:
            verdicts.append("")
        elif good:
            verdicts.append("reproduced")
        else:
            higher = row.method in best and tier_order(best[row.method]) > tier_order(row.tier)
            verdicts.append("needs a higher tier" if higher else "not reproduced")
    return table.assign(verdict=verdicts)


def _reaches(row: Mapping[str, float], stated: Mapping[str, float]) -> bool:
    return all(
        row[metric] >= value - MARGIN if _HIGHER_IS_BETTER[metric] else row[metric] <= value + MARGIN
        for metric, value in stated.items()
    )
