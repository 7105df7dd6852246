"""Gather the tables of all jobs into one table per question, and summarise them over seeds."""

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
) -> None:
    """
    Arguments:
        sidecars: .json of each architecture's and role's networks.
        metrics, curves, features: tables of `evaluate_saes`, `train_saes` and `analyze_features`; none without SAEs.
        parquet, csv: tables to write, by their names below.
    """
    by_name = {"classifiers": tables.classifiers(sidecars)}
    if metrics:
        saes, latents = tables.gather(metrics), tables.gather(features)
        by_name |= {
            "saes": saes,
            "saes_summary": tables.summarize(saes, tables.SAE_GROUP, tables.SAE_METRICS),
            "training": tables.gather(curves),
            "features": latents,
            "features_summary": tables.summarize_features(latents),
        }
    for exact, readable in zip(parquet, csv, strict=True):
        tables.write(by_name[exact.stem], exact, readable)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
