"""Write the injection study's report: one Markdown page over its tables and figures."""

import json
from pathlib import Path

import pandas as pd

from saeflow.config.images import N_CLASSES, Classifiers
from saeflow.config.injection import Injection
from saeflow.publish import goals, injection_report
from saeflow.rule import run


def main(*, tables: list[Path], figures: list[Path], about: list[Path], report: Path, older: Path, cfg: dict) -> None:
    """
    Arguments:
        tables, figures: of `gather_injection` and `draw_injection_figures`.
        about: .json of each method, in the order of the study.
        report: .md to write.
        older: the same under the name that the project's first scripts gave it.
        cfg: `study` and `dataset` (names), `pairs`, `injection` and `classifiers` (sections).
    """
    spec = Injection.model_validate(cfg["injection"])
    networks = Classifiers.model_validate(cfg["classifiers"])
    target, source = (networks.roles[role].classes for role in (spec.target, spec.source))
    task = {
        "dataset": cfg["dataset"],
        "target_classes": target,
        "source_classes": source,
        "concept": spec.concept,
        "lookalike": spec.lookalike,
    }
    study = injection_report.Study(
        **task,
        name=cfg["study"],
        architectures=list(dict.fromkeys(name for pair in cfg["pairs"] for name in pair)),
        n_pairs=len(cfg["pairs"]),
        seeds=networks.seeds_of(spec.target),
        unseen=[c for c in range(N_CLASSES[cfg["dataset"]]) if c not in (*target, *source)],
        preservation=spec.preservation,
        synthetic_images=spec.synthetic_images,
        bootstrap=spec.bootstrap,
        goals=goals.of_task(**task),
    )
    frames = {path.stem: pd.read_parquet(path) for path in tables}
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in about]
    text = injection_report.render(study, frames, contents, [path.stem for path in figures])
    for path in (report, older):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
