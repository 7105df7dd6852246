"""Gather the rows of all injection methods into one table per question: exact for programs, CSV for readers."""

import json
from pathlib import Path

from saeflow.config.images import Classifiers
from saeflow.config.injection import Injection
from saeflow.publish import injection_tables as tables
from saeflow.publish import older_numbers
from saeflow.rule import run


def main(
    *,
    measures: list[Path],
    curves: list[Path],
    intervals: list[Path],
    confusions: list[Path],
    examples: list[Path],
    about: list[Path],
    parquet: list[Path],
    csv: list[Path],
    cfg: dict,
) -> None:
    """
    Arguments:
        measures, curves, intervals, confusions, examples, about: what `inject` wrote, a file per method.
        parquet, csv: tables to write, by their names below.
        cfg: `dataset` (its name), `injection` and `classifiers` (sections).
    """
    spec = Injection.model_validate(cfg["injection"])
    networks = Classifiers.model_validate(cfg["classifiers"])
    stated = older_numbers.of_task(
        dataset=cfg["dataset"],
        target_classes=networks.roles[spec.target].classes,
        source_classes=networks.roles[spec.source].classes,
        concept=spec.concept,
        lookalike=spec.lookalike,
    )
    known = tables.variants(json.loads(path.read_text(encoding="utf-8")) for path in about)
    rows = tables.gather(measures)
    summary = tables.summary(rows, tables.gather(intervals), known, spec.concept)
    by_name = {
        "measures": rows,
        "summary": older_numbers.beside(summary, stated),
        "pairs": tables.pairs(rows, spec.concept, networks.architectures),
        "controls": tables.controls(rows, spec.concept),
        "curve": tables.curve(tables.gather(curves)),
        "pareto": tables.pareto(summary),
        "sweeps": tables.sweeps(summary),
        "stages": tables.stages(rows, spec.lookalike),
        "confusion": tables.gather(confusions),
        "examples": tables.gather(examples),
    }
    for path in parquet:
        by_name[path.stem].to_parquet(path, index=False)
    for path in csv:
        by_name[path.stem].to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
