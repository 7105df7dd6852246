"""Gather the tables of all jobs into one table per question, and summarize them over seeds."""

from pathlib import Path

from saeflow.publish import tables
from saeflow.rule import run


def main(
    *,
    sidecars: list[Path],
    metrics: list[Path],
    curves: list[Path],
    features: list[Path],
    parquet: list[Path],
    csv: list[Path],
    cfg: dict,
) -> None:
    """
    Arguments:
        sidecars, metrics, curves, features: files of the jobs, as the functions of `saeflow.publish.tables` take them.
        parquet, csv: tables to write, by their names there.
        cfg: `reads`, the kind of input.
    """
    by_name = tables.TABLES[cfg["reads"]](sidecars, metrics, curves, features)
    for exact, readable in zip(parquet, csv, strict=True):
        tables.write(by_name[exact.stem], exact, readable)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
