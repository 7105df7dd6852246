"""Write the injection study's results under the names that the project's first scripts gave them.

Each JSON file has a summary (a row per variant) and measures (a row per variant, control, pair, seed, stage and
concept) of the method or methods that it stands for.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from saeflow.reproduce import write_json
from saeflow.rule import run


def main(*, summary: Path, measures: Path, of_methods: list[Path], master: Path, cfg: dict) -> None:
    """
    Arguments:
        summary, measures: .parquet of `gather_injection`.
        of_methods: .json to write, named as in `names`.
        master: .json to write, of all methods.
        cfg: `names` (method by stem of its file).
    """
    rows, details = pd.read_parquet(summary), pd.read_parquet(measures)
    for path in of_methods:
        own = cfg["names"][path.stem]
        write_json(path, {"method": own, **_content(rows[rows["method"] == own], details[details["method"] == own])})
    write_json(master, {"methods": sorted(set(rows["method"])), **_content(rows, details)})


def _content(summary: pd.DataFrame, measures: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    return {"summary": _records(summary), "measures": _records(measures)}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as builtins; null for what is not there."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
