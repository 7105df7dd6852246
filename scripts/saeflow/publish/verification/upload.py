"""Checks of the upload batches: the published schema of POST /api/feature/upload-batch, and that nothing is missing."""

import math
from typing import Any

from saeflow.publish.neuronpedia_rows import BATCH, MOST_LOGITS, MOST_TOKENS
from saeflow.publish.verification.checks import check
from saeflow.publish.verification.opened import Package

_HIGHEST_INDEX = 10_000_000


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _activations(package: Package) -> Any:
    for where, feature in package.uploaded():
        for activation in feature.get("activations") or ():
            yield where, activation


@check("the upload batches are JSON and there is one")
def upload_batches_are_readable(package: Package) -> str | None:
    for _ in package.uploads():
        pass
    return None if package.upload_batches else "neuronpedia/upload holds no batch"


@check("upload batches are numbered from 0 without a gap")
def upload_batches_are_numbered(package: Package) -> str | None:
    names = [path.name for path in package.upload_batches]
    expected = [f"batch-{number:04}.json" for number in range(len(names))]
    return None if names == expected else f"found {names[:3]}, expected {expected[:3]}"


@check(f"an upload batch has 1 to {BATCH} features")
def upload_batches_have_few_features(package: Package) -> str | None:
    wrong = ((name, len(body["features"])) for name, body in package.uploads())
    return next((f"{name}: {n} features" for name, n in wrong if not 1 <= n <= BATCH), None)


@check("upload batches name the model and source of the manifest, in lower case")
def upload_names_agree(package: Package) -> str | None:
    names = package.manifest["neuronpedia"]
    expected = (names["model"].lower(), names["source"].lower())
    found = ((name, (body.get("modelId"), body.get("source"))) for name, body in package.uploads())
    return next((f"{name}: {pair}, expected {expected}" for name, pair in found if pair != expected), None)


@check("indices are whole numbers of latents")
def upload_indices_are_of_latents(package: Package) -> str | None:
    end = min(package.manifest["d_sae"], _HIGHEST_INDEX + 1)
    found = ((where, feature.get("index")) for where, feature in package.uploaded())
    return next((f"{where}" for where, i in found if not (type(i) is int and 0 <= i < end)), None)


@check("no feature is uploaded twice")
def upload_indices_are_unique(package: Package) -> str | None:
    seen: set[Any] = set()
    for where, feature in package.uploaded():
        if feature.get("index") in seen:
            return f"{where} is there twice"
        seen.add(feature.get("index"))
    return None


@check("every density is a number in [0, 1], never null")
def upload_densities_are_shares(package: Package) -> str | None:
    found = ((where, feature.get("density")) for where, feature in package.uploaded())
    return next((f"{where}: density {d}" for where, d in found if not (_number(d) and 0 <= d <= 1)), None)


@check("every uploaded feature has an activation")
def upload_features_have_activations(package: Package) -> str | None:
    found = (where for where, feature in package.uploaded() if not feature.get("activations"))
    return next((f"{where}: none" for where in found), None)


@check("no uploaded feature is dead: some value of each is above 0")
def upload_features_are_alive(package: Package) -> str | None:
    for where, feature in package.uploaded():
        values = [v for a in feature.get("activations") or () for v in a.get("values") or () if _number(v)]
        if values and max(values) <= 0:
            return f"{where}: no value above 0"
    return None


@check(f"an activation has 1 to {MOST_TOKENS} tokens")
def upload_activations_are_not_too_long(package: Package) -> str | None:
    found = ((where, len(a.get("tokens") or ())) for where, a in _activations(package))
    return next((f"{where}: {n} tokens" for where, n in found if not 1 <= n <= MOST_TOKENS), None)


@check("tokens are texts, none of them empty")
def upload_tokens_are_not_empty(package: Package) -> str | None:
    for where, activation in _activations(package):
        if not all(isinstance(token, str) and token for token in activation.get("tokens") or ()):
            return f"{where}: an empty token"
    return None


@check("an activation has a value for each token")
def upload_values_go_with_tokens(package: Package) -> str | None:
    found = ((where, len(a.get("tokens") or ()), len(a.get("values") or ())) for where, a in _activations(package))
    return next((f"{where}: {n} tokens, {m} values" for where, n, m in found if n != m), None)


@check("every value is a number: no NaN, no null")
def upload_values_are_numbers(package: Package) -> str | None:
    for where, activation in _activations(package):
        if not all(map(_number, activation.get("values") or ())):
            return f"{where}: a value that is no number"
    return None


@check("quantiles are numbers within the schema's bounds, or null")
def upload_quantiles_are_in_bounds(package: Package) -> str | None:
    bounds = {"quantileMax": 99_999_999, "quantileMin": 99_999_999, "quantileFraction": 1}
    for where, activation in _activations(package):
        for key, highest in bounds.items():
            value = activation.get(key)
            if value is not None and not (_number(value) and value <= highest):
                return f"{where}: {key} {value}"
    return None


@check(f"at most {MOST_LOGITS} promoted and suppressed tokens, each with a number")
def upload_logits_are_well_formed(package: Package) -> str | None:
    for where, feature in package.uploaded():
        for key in ("topLogits", "bottomLogits"):
            logits = feature.get(key) or []
            if len(logits) > MOST_LOGITS:
                return f"{where}: {len(logits)} {key}"
            if not all(isinstance(x.get("token"), str) and x["token"] and _number(x.get("value")) for x in logits):
                return f"{where}: {key} without a token or a number"
    return None


@check("all features that fire are uploaded, and no other")
def upload_is_complete(package: Package) -> str | None:
    living = {
        str(row.get("feature")) for row in package.older_features if not row.get("dead") and row.get("n_contexts")
    }
    found = {str(feature.get("index")) for _, feature in package.uploaded()}
    if living != found:
        return f"{len(living - found)} features missing, {len(found - living)} foreign"
    return None


@check("densities are those of the analysis")
def upload_densities_are_the_analysis(package: Package) -> str | None:
    analysed = {str(row.get("feature")): row.get("density") for row in package.older_features}
    for where, feature in package.uploaded():
        density, expected = feature.get("density"), analysed.get(str(feature.get("index")))
        if not (_number(density) and 0 <= density <= 1 and _number(expected)):
            continue  # the matter of other checks
        if not math.isclose(density, expected, rel_tol=1e-5):
            return f"{where}: density {density}, the analysis has {expected}"
    return None


@check("the manifest counts the features that are published")
def number_of_features_agrees(package: Package) -> str | None:
    n = sum(1 for _ in package.uploaded())
    said = package.manifest["n_published"]
    return None if said == n else f"package.json says {said}, the upload has {n}"
