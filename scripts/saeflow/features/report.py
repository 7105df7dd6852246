"""What is written about the latents of one SAE: a table row each, a JSON report, and the arrays behind the pictures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from torch import Tensor

from saeflow.features import patterns
from saeflow.features.analysis import Analysis
from saeflow.reproduce import write_arrays, write_json

_PATTERN_COLUMNS = {
    "keep_r2": "r^2 between the pre-activations on unseen images before and after all but the pattern's strongest "
    "pixels are replaced by the mean image",
    "smoothness": "Moran's I of the pattern over neighbouring pixels",
    "top_cosine": "cosine of the pattern with the mean of the top examples less the mean image",
    "off_energy": "share of the pattern's squared values on pixels that no training image lights",
}

COLUMNS: dict[str, str] = {
    "latent": "index of the latent in the SAE",
    "dead": "fires on no row of the training split",
    "n_active": "rows of the training split on which it fires",
    "activation_rate": "share of the training rows on which it fires",
    "test_activation_rate": "share of the test rows on which it fires",
    "mean_active": "mean activation over the training rows on which it fires, in the store's units",
    "max_active": "highest activation on the training split",
    "label": "label with the largest share of its activation mass on the training split, -1 if dead",
    "label_share": "that share",
    "n_effective_labels": "exp of the entropy of its activation mass over the labels: 1 for one label only",
    **{
        f"{score}_{name}": f"{text} ({name.replace('_', ' x ')})"
        for score, text in _PATTERN_COLUMNS.items()
        for name in patterns.NAMES
    },
    "keep_r2_random": "the same deletion test with as many pixels drawn at random",
    "promotes": "class whose logit rises most when its decoder row is added, -1 if dead",
    "suppresses": "class whose logit falls most (or rises least) when its decoder row is added, -1 if dead",
    "effect_size": "root mean square over classes of the centered logit change when its decoder row is added",
    "effect_size_random": "the same for one random direction of equal norm",
    "flip_rate": "share of the rows on which it fires whose predicted class changes when it is removed",
    "r_ablation_addition": "correlation over classes of minus the ablation effect with the addition effect",
    "r_ablation_direct": "correlation over classes of minus the ablation effect with decoder row x mean Jacobian",
    "r_addition_direct": "correlation over classes of the addition effect with decoder row x mean Jacobian",
    "nearest": "latent with the most similar decoder row",
    "nearest_cosine": "cosine of the two decoder rows",
    "decoder_norm": "norm of its decoder row",
    "encoder_cosine": "cosine of its encoder column with its decoder row",
    "hypothesis": "in words when it fires; chosen on the training split",
    "hypothesis_kind": "dead, rare, none, labels, all but labels, property, label and property",
    "auroc_train": "AUROC (which for a yes/no rule is its balanced accuracy) as predictor of firing, training split",
    "auroc": "the same on the test split, which the rule has not seen; chance 0.5",
    "auroc_null": "the same when the test rows are shuffled against the latent, one draw",
    "auroc_null_p95": "95th percentile over all such shuffles",
    "p_value": "probability that shuffled rows score at least as high",
    "average_precision": "of the rule on the test split; chance is test_activation_rate",
    "precision": "share of the test rows named by the rule on which it fires",
    "recall": "share of the test rows on which it fires that the rule names",
}


def columns(analysis: Analysis) -> dict[str, np.ndarray | list[str]]:
    """One value per latent for each of COLUMNS."""
    a, bank = analysis, analysis.bank
    shares = bank.label_shares
    agreement, scores = a.effects.agreement(), a.hypotheses.scores
    found: dict[str, Tensor | list[str]] = {
        "latent": torch.arange(len(bank.n_active), dtype=torch.int32),
        "dead": bank.dead,
        "n_active": bank.n_active,
        "activation_rate": bank.activation_rate.float(),
        "test_activation_rate": a.test_bank.activation_rate.float(),
        "mean_active": bank.mean_active.float(),
        "max_active": bank.max_active,
        "label": _unless_dead(shares.argmax(1), bank.dead),
        "label_share": shares.max(1).values.float(),
        "n_effective_labels": torch.where(bank.dead, torch.nan, torch.special.entr(shares).sum(1).exp()).float(),
        **{
            f"{score}_{name}": getattr(a.pattern_scores[name], score)
            for score in _PATTERN_COLUMNS
            for name in patterns.NAMES
        },
        "keep_r2_random": a.random_keep_r2,
        "promotes": _unless_dead(a.effects.addition.argmax(1), bank.dead),
        "suppresses": _unless_dead(a.effects.addition.argmin(1), bank.dead),
        "effect_size": a.effects.size,
        "effect_size_random": a.effects.random_size,
        "flip_rate": a.effects.flips,
        **{f"r_{pair}": value for pair, value in agreement.items()},
        "nearest": a.geometry.neighbours[:, 0].int(),
        "nearest_cosine": a.geometry.cosines[:, 0],
        "decoder_norm": a.geometry.norms,
        "encoder_cosine": a.geometry.encoder_cosine,
        "hypothesis": a.hypotheses.text,
        "hypothesis_kind": a.hypotheses.rules.kind,
        "auroc_train": a.hypotheses.auroc_train,
        "auroc": scores.auroc,
        "auroc_null": scores.auroc_null,
        "auroc_null_p95": scores.auroc_null_p95,
        "p_value": scores.p_value,
        "average_precision": scores.average_precision,
        "precision": scores.precision,
        "recall": scores.recall,
    }
    return {name: v if isinstance(v, list) else v.cpu().numpy() for name, v in found.items()}


def summary(analysis: Analysis) -> dict[str, Any]:
    """What the latents of the SAE are like together; medians are over the latents for which the number is defined."""
    c, bank = columns(analysis), analysis.bank
    tested = ~np.isnan(c["auroc"])
    beyond_null = c["auroc"][tested] > c["auroc_null_p95"][tested]
    kinds, alive = c["hypothesis_kind"], ~c["dead"]
    return {
        "n_latents": len(bank.n_active),
        "n_rows_train": bank.n_rows,
        "n_rows_test": analysis.test_bank.n_rows,
        "l0": bank.l0,
        "dead_share": float(c["dead"].mean()),
        "active_above_half_share": float((c["activation_rate"] > 0.5).mean()),
        "median_n_effective_labels": _median(c["n_effective_labels"]),
        "patterns": {
            name: {score: _median(c[f"{score}_{name}"]) for score in _PATTERN_COLUMNS} for name in patterns.NAMES
        }
        | {"random": {"keep_r2": _median(c["keep_r2_random"])}},
        "effects": {
            "correlation_pooled": analysis.effects.pooled_agreement(),
            "correlation_median": {pair: _median(v.cpu().numpy()) for pair, v in analysis.effects.agreement().items()},
            "above_random_share": float((c["effect_size"] > c["effect_size_random"])[alive].mean())
            if alive.any()
            else None,
            "promotes_own_label_share": float((c["promotes"] == c["label"])[alive].mean()) if alive.any() else None,
            "median_flip_rate": _median(c["flip_rate"]),
        },
        "median_nearest_cosine": _median(c["nearest_cosine"]),
        "hypotheses": {
            "n_by_kind": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "n_tested": int(tested.sum()),
            "median_auroc": _median(c["auroc"]),
            "median_average_precision": _median(c["average_precision"]),
            "median_auroc_null_p95": _median(c["auroc_null_p95"]),
            "above_null_p95_share": float(beyond_null.mean()) if tested.any() else None,
            "p_below_0.01_share": float((c["p_value"][tested] < 0.01).mean()) if tested.any() else None,
        },
    }


def report(analysis: Analysis, identity: Mapping[str, Any], images: Int[Tensor, " rows"]) -> dict[str, Any]:
    """`feature_report.json`: identity of the SAE, summary, meaning of every column, one entry per latent.

    Arguments:
        identity: names of the SAE (architecture, seed, variant, ...), repeated in every row of the table.
        images: image index of each training row.
    """
    c = columns(analysis)
    tops = _image_indices(analysis.bank.top.rows, images).tolist()
    shares = analysis.bank.label_shares.tolist()
    neighbours, cosines = analysis.geometry.neighbours.tolist(), analysis.geometry.cosines.tolist()
    rows = [
        {name: values[i] if isinstance(values, list) else values[i].item() for name, values in c.items()}
        | {
            "top_images": [index for index in tops[i] if index >= 0],
            "label_shares": shares[i],
            "neighbours": dict(zip(map(str, neighbours[i]), cosines[i], strict=True)),
        }
        for i in range(len(tops))
    ]
    return _rounded({"sae": dict(identity), "summary": summary(analysis), "columns": COLUMNS, "features": rows})


def table(analysis: Analysis, identity: Mapping[str, Any]) -> pa.Table:
    """One row per latent: the identity's names, then COLUMNS; their meaning is in the fields' metadata."""
    c = columns(analysis)
    n = len(c["latent"])
    fields = {name: pa.array([value] * n) for name, value in identity.items()}
    fields |= {name: pa.array(values) for name, values in c.items()}
    described = [
        pa.field(name, values.type, metadata={"description": COLUMNS[name]} if name in COLUMNS else None)
        for name, values in fields.items()
    ]
    return pa.table(list(fields.values()), schema=pa.schema(described))


def arrays(analysis: Analysis, images: Int[Tensor, " rows"], image_shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """What the pictures need beside the table and the dataset."""
    a = analysis
    shown = a.bank.sample.first(a.bank.top.rows.shape[1]).by_value()
    found = {
        **{f"pattern_{name}": value for name, value in a.patterns.items()},
        "top_images": _image_indices(a.bank.top.rows, images),
        "top_values": a.bank.top.values,
        "sample_images": _image_indices(shown.rows, images),
        "sample_values": shown.values,
        "label_shares": a.bank.label_shares.float(),
        "label_rows": a.bank.label_rows,
        "ablation": a.effects.ablation,
        "addition": a.effects.addition,
        "direct": a.effects.direct,
        "neighbours": a.geometry.neighbours.int(),
        "cosines": a.geometry.cosines,
    }
    return {name: v.cpu().numpy() for name, v in found.items()} | {"image_shape": np.array(image_shape)}


def write(
    analysis: Analysis,
    identity: Mapping[str, Any],
    images: Int[Tensor, " rows"],
    image_shape: tuple[int, int],
    *,
    table_path: Path,
    report_path: Path,
    arrays_path: Path,
) -> None:
    """Write all three; their bytes depend on their content alone."""
    pq.write_table(table(analysis, identity), table_path)
    write_json(report_path, report(analysis, identity, images))
    write_arrays(arrays_path, arrays(analysis, images, image_shape))


def _image_indices(rows: Tensor, images: Tensor) -> Tensor:
    """Images of rows, -1 where there is none."""
    return torch.where(rows >= 0, images.to(rows.device)[rows.clamp(min=0)], -1)


def _unless_dead(indices: Tensor, dead: Tensor) -> Tensor:
    return torch.where(dead, -1, indices).int()


def _median(values: np.ndarray) -> float | None:
    """Median of the numbers among the values."""
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None


def _rounded(content: Any) -> Any:
    """The same, floats at six significant digits and NaN as null."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    if isinstance(content, float):
        return None if math.isnan(content) else float(f"{content:.6g}")
    return content
