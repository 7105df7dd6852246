"""Features and activations as Neuronpedia has them: for its upload API, and for its import from a directory.

The upload's schema is that of POST /api/feature/upload-batch (1 to 128 features; 1 to 1024 non-empty tokens, as many
values; density a number in [0, 1]); the directory's rows have the columns of its tables Neuron and Activation.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from saeflow.publish.feature_rows import FeatureRow
from saeflow.publish.identity import Identity

BATCH = 128
"""Features of one request, at most."""
MOST_TOKENS = 1024
MOST_LOGITS = 20
EMPTY = "\N{REPLACEMENT CHARACTER}"
"""Stands for a token that decodes to nothing, such as a part of a character: the schema refuses empty strings."""


def uploaded(row: FeatureRow) -> dict[str, Any]:
    """A living feature for the upload API.

    Raises:
        ValueError: a number that is none; names the feature.
    """
    feature = row.feature
    index = feature["feature"]
    return {
        "index": index,
        "density": _finite(feature["density"], index, "density"),
        "topLogits": _logits(feature, "top"),
        "bottomLogits": _logits(feature, "bottom"),
        "activations": [
            {"tokens": tokens, "values": values, "quantileMax": None, "quantileMin": None, "quantileFraction": None}
            for tokens, values, _ in (_window(context, index) for context in row.contexts if context["activation"] > 0)
        ],
    }


def feature_row(row: FeatureRow, identity: Identity) -> dict[str, Any]:
    """A feature as a row of the table Neuron."""
    feature = row.feature
    index = feature["feature"]
    top, bottom = (_logits(feature, side) for side in ("top", "bottom"))
    edges = [_finite(edge, index, "bin_edges") for edge in feature["bin_edges"]]
    return {
        **_key(index, identity),
        "sourceSetName": identity.np_set,
        "creatorId": identity.release.creator_id,
        "createdAt": identity.release.created_at,
        "maxActApprox": _finite(feature["max_activation"], index, "max_activation"),
        "hasVector": False,
        "vector": [],
        "hookName": identity.hook_point,
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        "correlated_features_indices": feature["neighbours"],
        "correlated_features_pearson": [],
        "correlated_features_l1": [],
        "neg_str": [logit["token"] for logit in bottom],
        "neg_values": [logit["value"] for logit in bottom],
        "pos_str": [logit["token"] for logit in top],
        "pos_values": [logit["value"] for logit in top],
        "frac_nonzero": _finite(feature["density"], index, "density"),
        "freq_hist_data_bar_heights": feature["histogram"],
        "freq_hist_data_bar_values": [_short((a + b) / 2) for a, b in pairwise(edges)],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "decoder_weights_dist": [],
    }


def activation_rows(row: FeatureRow, identity: Identity, data_source: str) -> list[dict[str, Any]]:
    """The contexts of a feature as rows of the table Activation; ids are digests of what they hold."""
    index = row.feature["feature"]
    rows = []
    for rank, context in enumerate(context for context in row.contexts if context["activation"] > 0):
        tokens, values, peak = _window(context, index)
        content = {
            **_key(index, identity),
            "tokens": tokens,
            "values": values,
            "maxValue": values[peak],
            "maxValueTokenIndex": peak,
            "minValue": min(values),
            "dataSource": data_source,
            "dataIndex": str(context["document"]),
            "creatorId": identity.release.creator_id,
            "createdAt": identity.release.created_at,
        }
        rows.append({"id": content_id(content, rank), **content})
    return rows


def content_id(content: Mapping[str, Any], rank: int) -> str:
    """An id of the form that Neuronpedia's have, c and 24 more characters, from what the row holds."""
    kept = {key: value for key, value in content.items() if key not in ("id", "createdAt", "creatorId")}
    text = json.dumps([kept, rank], sort_keys=True, ensure_ascii=False)
    return "c" + hashlib.sha256(text.encode()).hexdigest()[:24]


def table_rows(identity: Identity, summary: Mapping[str, Any], n_layers: int | None) -> dict[str, dict[str, Any]]:
    """The one row of each file above the features: release, model, source set, source."""
    release = identity.release
    shared = {"creatorId": release.creator_id, "createdAt": release.created_at, "visibility": "PUBLIC"}
    description = f"{identity.hook_point}, {summary['d_sae']} latents, {identity.variant}"
    return {
        "release": shared
        | {
            "name": release.name,
            "description": release.title,
            "descriptionShort": release.title,
            "creatorName": release.creator,
            "creatorNameShort": release.creator,
            "urls": [release.url] if release.url else [],
            "defaultSourceSetName": identity.np_set,
            "defaultSourceId": identity.np_source,
        },
        "model": shared
        | {
            "id": identity.np_model,
            "instruct": False,
            "displayName": identity.model,
            "displayNameShort": identity.model,
            "dimension": summary["d_in"],
            "layers": n_layers or 0,
            "defaultSourceSetName": identity.np_set,
            "defaultSourceId": identity.np_source,
            "updatedAt": release.created_at,
        },
        "sourceset": shared
        | {
            "modelId": identity.np_model,
            "name": identity.np_set,
            "releaseName": release.name,
            "description": description,
            "type": identity.hook_point,
            "creatorName": release.creator,
            "urls": [release.url] if release.url else [],
            "hasDashboards": True,
        },
        "source": shared
        | {
            "id": identity.np_source,
            "modelId": identity.np_model,
            "setName": identity.np_set,
            "hasDashboards": True,
            "num_prompts": summary["n_tokens"] // summary["context_size"],
            "num_tokens_in_prompt": summary["context_size"],
            "notes": f"study {identity.study}, L0 {summary['l0']:.3g}, EV {summary['explained_variance']:.3g}",
        },
    }


def _key(index: int, identity: Identity) -> dict[str, str]:
    return {"modelId": identity.np_model, "layer": identity.np_source, "index": str(index)}


def _logits(feature: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    pairs = zip(feature[f"{side}_tokens"], feature[f"{side}_logits"], strict=True)
    index = feature["feature"]
    return [{"token": _token(t), "value": _finite(v, index, f"{side}_logits")} for t, v in pairs][:MOST_LOGITS]


def _window(context: Mapping[str, Any], index: int) -> tuple[list[str], list[float], int]:
    """Tokens, values and peak of a context; the part around the peak where it is longer than the schema allows."""
    n, peak = len(context["tokens"]), context["position"]
    start = max(0, min(peak - MOST_TOKENS // 2, n - MOST_TOKENS))
    part = slice(start, start + MOST_TOKENS)
    values = [_finite(value, index, "activations") for value in context["activations"][part]]
    return [_token(token) for token in context["tokens"][part]], values, values.index(max(values))


def _token(token: str) -> str:
    """PostgreSQL, which Neuronpedia keeps its rows in, has no NUL."""
    return token.replace("\x00", EMPTY) or EMPTY


def _finite(value: float | None, index: int, name: str) -> float:
    if value is None or not math.isfinite(value):
        raise ValueError(f"feature {index}: {name} is {value}, which is no number; analyse the SAE again")
    return _short(value)


def _short(value: float) -> float:
    """Six significant digits: single precision has little more."""
    return float(f"{value:.6g}")
