"""Tidy tables of a study: gathered from the jobs' own files, summarised over seeds."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

SAE_GROUP = ("architecture", "role", "hook_point", "variant")
SAE_METRICS = (
    "l0",
    "explained_variance",
    "accuracy_clean",
    "accuracy_spliced",
    "accuracy_change_pp",
    "agreement",
    "dead_share",
    "dense_share_10",
)
TEXT_METRICS = (
    "l0",
    "explained_variance",
    "ce_clean",
    "ce_sae",
    "ce_recovered_zero",
    "ce_recovered_mean",
    "dead_share",
    "dense_share_10",
)
TEXT_GROUP = ("model", "hook_point", "variant")
PATTERNS = ("gradient", "gradient_input", "haufe", "random")


def of_images(
    sidecars: Sequence[Path], metrics: Sequence[Path], curves: Sequence[Path], features: Sequence[Path]
) -> dict[str, pd.DataFrame]:
    """Tables of classifiers and of the SAEs on them, by name.

    Arguments:
        sidecars: .json of each architecture's and role's networks.
        metrics, curves, features: tables of `evaluate_saes`, `train_saes` and `analyze_features`; none without SAEs.
    """
    if not metrics:
        return {"classifiers": classifiers(sidecars)}
    saes, latents = gather(metrics), gather(features)
    return {
        "classifiers": classifiers(sidecars),
        "saes": saes,
        "saes_summary": summarize(saes, SAE_GROUP, SAE_METRICS),
        "training": gather(curves),
        "features": latents,
        "features_summary": summarize_features(latents),
    }


def of_texts(
    sidecars: Sequence[Path], metrics: Sequence[Path], curves: Sequence[Path], features: Sequence[Path]
) -> dict[str, pd.DataFrame]:
    """Tables of the SAEs on language models, by name.

    Arguments:
        sidecars: none.
        metrics, curves: tables of `evaluate_saes` and `train_saes`.
        features: summary.json of `analyze_features`, one per hook point and variant.
    """
    saes = gather(metrics)
    summaries = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")) for path in features)
    return {
        "saes": saes,
        "saes_summary": summarize(saes, TEXT_GROUP, TEXT_METRICS),
        "training": gather(curves),
        "features_summary": summaries[[*TEXT_GROUP, "d_sae", "dead_share", "n_tokens"]].rename(
            columns={"d_sae": "features"}
        ),
    }


TABLES: dict[str, Callable[..., dict[str, pd.DataFrame]]] = {"images": of_images, "texts": of_texts}
"""Tables of a study, by kind of input."""


def gather(paths: Iterable[Path]) -> pd.DataFrame:
    """Rows of many Parquet tables of the same columns, in the order of the paths."""
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def classifiers(sidecars: Iterable[Path]) -> pd.DataFrame:
    """A row per trained network, from the JSON files beside the weights."""
    rows = []
    for sidecar in sidecars:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
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


def summarize_features(latents: pd.DataFrame) -> pd.DataFrame:
    """What the latents of each kind of SAE are like: a row per architecture, role, hook point and variant.

    Returns:
        `latents` (number), `dead` (share), then of the latents with a tested hypothesis `hypothesis_above_null` (share
        whose held-out AUROC exceeds the 95th percentile of shuffled rows), median `auroc` and `auroc_null_p95`; medians
        of the share of variance kept in the deletion test for each input pattern and for random pixels; and the median
        correlation between the logit effects of ablation and addition.
    """
    tested = latents["auroc"].where(~latents["dead"])
    above = (tested > latents["auroc_null_p95"]).astype(float).where(tested.notna())
    columns = {
        "latents": ("latent", "size"),
        "dead": ("dead", "mean"),
        "hypothesis_above_null": ("above", "mean"),
        "auroc": ("auroc", "median"),
        "auroc_null_p95": ("auroc_null_p95", "median"),
        **{f"keep_r2_{name}": (f"keep_r2_{name}", "median") for name in PATTERNS},
        "r_ablation_addition": ("r_ablation_addition", "median"),
    }
    return latents.assign(above=above, auroc=tested).groupby(list(SAE_GROUP), sort=False).agg(**columns).reset_index()
