"""Search for the text that drives each chosen feature of an SAE most, by every method, within one budget."""

import json
import logging
from pathlib import Path

from saeflow.inversion import pipeline
from saeflow.inversion.selection.activity import Activity
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(
    *,
    model: list[Path],
    sae: Path,
    store: Path,
    activity: Path,
    summary: Path,
    texts: Path,
    fronts: Path,
    curves: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        sae: cfg.json of the SAE.
        store: manifest.json of the training split.
        activity, summary: of `select_inversion_features`.
        texts, fronts, curves: tables to write; `saeflow.inversion.optimization.comparison` has their columns.
        cfg: `inversion` (section), `settings` (the model's section), `hook_point`, `seed`, `device`.
    """
    experiment = pipeline.experiment_of_job(model, sae, {"train": store}, cfg)
    chosen = [one["feature"] for one in json.loads(summary.read_text(encoding="utf-8"))["chosen"]]
    found = pipeline.optimize_feature(experiment, Activity.read(activity), chosen)
    for table, path in ((found.texts, texts), (found.fronts, fronts), (found.curves, curves)):
        table.to_parquet(path)
    log.info("of all that, the model alone: %.0f s", found.seconds["model"])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
