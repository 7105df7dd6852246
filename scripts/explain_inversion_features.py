"""Explain each chosen feature of an SAE in a sentence with its evidence, and test that on text held out."""

import json
from pathlib import Path

import pandas as pd
from pyarrow import parquet

from saeflow.inversion import pipeline
from saeflow.inversion.explanations import scoring
from saeflow.inversion.selection.activity import Activity
from saeflow.inversion.selection.choice import Card, Chosen
from saeflow.reproduce import write_json
from saeflow.rule import run


def main(
    *,
    model: list[Path],
    sae: Path,
    stores: list[Path],
    features: Path,
    activity: Path,
    selection: Path,
    found: Path | list[Path],
    explanations: Path,
    scores: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        sae: cfg.json of the SAE.
        stores: manifest.json of the training split and of the one held out.
        features: table of `analyze_features`.
        activity, selection: .npz and .json of `select_inversion_features`.
        found: texts of `invert_features`; empty if nothing was searched for.
        explanations: table to write, a row per feature; `saeflow.inversion.explanations.scoring` has the scores.
        scores: .json to write: means, medians, and the margin over the top token with its interval.
        cfg: `inversion` (section), `settings` (the model's section), `hook_point`, `seed`, `device`.
    """
    experiment = pipeline.experiment_of_job(
        model, sae, dict(zip(("train", "held_out"), stores, strict=True)), cfg, with_model=False
    )
    known = parquet.read_table(features, columns=["feature", "top_tokens"]).to_pydict()
    content = json.loads(selection.read_text(encoding="utf-8"))
    table = pipeline.generate_explanations(
        experiment,
        Activity.read(activity),
        [Chosen(**one) for one in content["chosen"]],
        [Card(**card) for card in content["cards"]],
        pd.read_parquet(found) if found else None,
        dict(zip(known["feature"], known["top_tokens"], strict=True)),
    )
    table.to_parquet(explanations)
    write_json(scores, _summary(table, cfg["seed"]))


def _summary(table: pd.DataFrame, seed: int) -> dict[str, float | int | list[float] | None]:
    tested = table.dropna(subset=["detection", "top_token_detection"])
    result: dict = {"features": len(table), "tested": len(tested)}
    for prefix in ("", "top_token_", "random_"):
        for name in ("detection", "balanced_accuracy", "fuzzing"):
            values = table[f"{prefix}{name}"].dropna().astype(float)
            result[f"{prefix}{name}_mean"] = float(values.mean()) if len(values) else None
            result[f"{prefix}{name}_median"] = float(values.median()) if len(values) else None
    if len(tested):
        margin = (tested["detection"] - tested["top_token_detection"]).to_numpy(float)
        result["detection_margin"], *interval = scoring.interval(margin, seed)
        result["detection_margin_interval"] = interval
    return result


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
