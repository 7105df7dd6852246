"""Tidy tables of a study: gathered from the jobs' own files, summarised over seeds."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

KEYS = ("architecture", "role", "hook_point", "variant", "seed", "sae_seed", "class")


def gather(paths: Iterable[Path]) -> pd.DataFrame:
    """Rows of many Parquet tables of the same columns, in the order of the paths."""
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def classifiers(sidecars: Iterable[Path]) -> pd.DataFrame:
    """A row per trained network, from the JSON files beside the weights."""
    rows = []
    for sidecar in sidecars:
        content = json.loads(sidecar.read_text())
        for member in content["members"]:
            rows.append({"architecture": content["architecture"], "role": content["role"], **member})
    return pd.DataFrame(rows)


def summarize(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Mean and sample standard deviation of each metric over the rows of a group, and their number `n`.

    Returns:
        a row per group in order of first appearance, columns `<metric>`, `<metric>_std`, `n`.
    """
    groups = table.groupby(list(by), sort=False)
    parts = [
        groups[list(metrics)].mean(),
        groups[list(metrics)].std(ddof=1).add_suffix("_std"),
        groups.size().rename("n"),
    ]
    return pd.concat(parts, axis=1).reset_index()


def write(table: pd.DataFrame, parquet: Path, csv: Path) -> None:
    """Write a table twice: exact for programs, six significant digits for readers."""
    table.to_parquet(parquet, index=False)
    table.to_csv(csv, index=False, float_format="%.6g")
