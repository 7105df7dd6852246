"""Gather the tables of all SAEs of the study's language models, and summarise them over seeds."""

import json
from pathlib import Path

import pandas as pd

from saeflow.publish import tables
from saeflow.rule import run

_SAE = ("model", "hook_point", "variant")


def main(
    *, metrics: list[Path], curves: list[Path], summaries: list[Path], parquet: list[Path], csv: list[Path]
) -> None:
    """
    Arguments:
        metrics, curves: tables of `evaluate_language_saes` and `train_language_saes`.
        summaries: summary.json of `analyze_language_features`, one per hook point and variant.
        parquet, csv: tables to write, by their names below.
    """
    saes, found = (
        tables.gather(metrics),
        pd.DataFrame(json.loads(path.read_text(encoding="utf-8")) for path in summaries),
    )
    by_name = {
        "saes": saes,
        "saes_summary": tables.summarize(saes, _SAE, tables.TEXT_METRICS),
        "training": tables.gather(curves),
        "features_summary": found[[*_SAE, "d_sae", "dead_share", "n_tokens"]].rename(columns={"d_sae": "features"}),
    }
    for exact, readable in zip(parquet, csv, strict=True):
        tables.write(by_name[exact.stem], exact, readable)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
