"""Checks of the export directory, as Neuronpedia's import reads it."""

from typing import Any

from saeflow.publish.neuronpedia_rows import content_id
from saeflow.publish.verification.checks import check
from saeflow.publish.verification.opened import BlockedError, Package

_ROWS = ("release", "model", "sourceset", "source")
_FEATURE = ("modelId", "layer", "index", "sourceSetName", "creatorId", "createdAt", "maxActApprox", "frac_nonzero")
_FEATURE += (
    "pos_str",
    "pos_values",
    "neg_str",
    "neg_values",
    "freq_hist_data_bar_heights",
    "freq_hist_data_bar_values",
)
_ACTIVATION = ("id", "modelId", "layer", "index", "tokens", "values", "maxValue", "maxValueTokenIndex", "minValue")
_ACTIVATION += ("creatorId", "createdAt", "dataSource", "dataIndex")


@check("the export has its four tables, features and activations, batch by batch")
def export_files_are_there(package: Package) -> str | None:
    absent = [f"{name}.jsonl" for name in _ROWS if not (package.source / f"{name}.jsonl").is_file()]
    kinds = {kind: sorted(p.name for p in (package.source / kind).glob("*")) for kind in ("features", "activations")}
    if absent:
        return f"missing: {', '.join(absent)}"
    expected = [f"batch-{number}.jsonl.gz" for number in range(len(package.upload_batches))]
    wrong = [kind for kind, names in kinds.items() if names != sorted(expected)]
    return f"{', '.join(wrong)}: expected {len(expected)} batches, batch-0.jsonl.gz on" if wrong else None


@check("every row of the export is JSON without NaN, and the four tables have one each")
def export_rows_are_readable(package: Package) -> str | None:
    for name in _ROWS:
        if (package.source / f"{name}.jsonl").is_file():
            package.row(name)
    for kind in ("features", "activations"):
        for _ in package.exported(kind):
            pass
    return None


@check("release, model, source set and source name one another and what the manifest says")
def export_names_agree(package: Package) -> str | None:
    names = package.manifest["neuronpedia"]
    expected = {
        ("release", "name"): names["release"],
        ("model", "id"): names["model"],
        ("sourceset", "name"): names["set"],
        ("sourceset", "modelId"): names["model"],
        ("sourceset", "releaseName"): names["release"],
        ("source", "id"): names["source"],
        ("source", "modelId"): names["model"],
        ("source", "setName"): names["set"],
    }
    rows = {name: _row(package, name) for name in _ROWS}
    wrong = [
        f"{name}.{key} is {rows[name].get(key)!r}"
        for (name, key), value in expected.items()
        if rows[name].get(key) != value
    ]
    return "; ".join(wrong) or None


@check("the source is its layer, a dash and its set")
def source_is_layer_and_set(package: Package) -> str | None:
    names = package.manifest["neuronpedia"]
    layer, _, rest = names["source"].partition("-")
    good = layer.isdigit() and rest == names["set"] and "__" not in rest and rest == rest.lower()
    return None if good else f"source {names['source']!r} with set {names['set']!r}"


@check("features of the export have the columns of the table Neuron")
def export_features_have_their_columns(package: Package) -> str | None:
    return _without_columns(package, "features", _FEATURE)


@check("activations of the export have the columns of the table Activation")
def export_activations_have_their_columns(package: Package) -> str | None:
    return _without_columns(package, "activations", _ACTIVATION)


@check("features and activations are of the model and source of the manifest")
def export_rows_are_of_the_source(package: Package) -> str | None:
    names = package.manifest["neuronpedia"]
    expected = (names["model"], names["source"])
    for kind in ("features", "activations"):
        for where, row in package.exported(kind):
            if (row.get("modelId"), row.get("layer")) != expected:
                return f"{kind}, {where}: {row.get('modelId')}, {row.get('layer')}"
    return None


@check("the export has the features of the upload, as often")
def export_is_the_upload(package: Package) -> str | None:
    uploaded = {str(feature.get("index")) for _, feature in package.uploaded()}
    exported = [str(row.get("index")) for _, row in package.exported("features")]
    if len(set(exported)) != len(exported):
        return "a feature is there twice"
    return None if set(exported) == uploaded else f"{len(uploaded ^ set(exported))} features are in one of them only"


@check("every exported feature has its activations, as many as the upload")
def export_has_all_activations(package: Package) -> str | None:
    uploaded = {str(feature.get("index")): len(feature.get("activations") or ()) for _, feature in package.uploaded()}
    counts = dict.fromkeys(uploaded, 0)
    for where, row in package.exported("activations"):
        index = str(row.get("index"))
        if index not in counts:
            return f"{where}: of feature {index}, which is not uploaded"
        counts[index] += 1
    wrong = [index for index, n in counts.items() if n != uploaded[index]]
    return f"feature {wrong[0]}: {counts[wrong[0]]} activations, {uploaded[wrong[0]]} uploaded" if wrong else None


@check("peaks are where the values have them")
def export_peaks_are_right(package: Package) -> str | None:
    for where, row in package.exported("activations"):
        values, at = row.get("values") or [], row.get("maxValueTokenIndex")
        if not values or type(at) is not int:
            continue  # the matter of the columns
        right = (
            0 <= at < len(values)
            and values[at] == max(values) == row.get("maxValue")
            and row.get("minValue") == min(values)
        )
        if not right:
            return f"{where}: maximum {row.get('maxValue')} at {at}, minimum {row.get('minValue')}"
    return None


@check("ids are digests of what the rows hold, so that no two are alike")
def export_ids_are_digests(package: Package) -> str | None:
    seen: set[str] = set()
    ranks: dict[Any, int] = {}
    for where, row in package.exported("activations"):
        index = row.get("index")
        rank = ranks[index] = ranks.get(index, -1) + 1
        if row.get("id") in seen:
            return f"{where}: id {row.get('id')} is there twice"
        seen.add(row.get("id", ""))
        if row.get("id") != content_id(row, rank):
            return f"{where}: id {row.get('id')}, its content has {content_id(row, rank)}"
    return None


@check("every date is the one that the manifest states")
def export_dates_are_fixed(package: Package) -> str | None:
    expected = package.manifest["neuronpedia"]["created_at"]
    for name in _ROWS:
        if _row(package, name).get("createdAt") != expected:
            return f"{name}.jsonl: {_row(package, name).get('createdAt')}, expected {expected}"
    for kind in ("features", "activations"):
        for where, row in package.exported(kind):
            if "createdAt" in row and row["createdAt"] != expected:
                return f"{kind}, {where}: {row['createdAt']}, expected {expected}"
    return None


@check("gzip files carry neither name nor time")
def export_is_packed_alike(package: Package) -> str | None:
    for path in sorted(package.source.rglob("*.gz")):
        with open(path, "rb") as file:
            head = file.read(10)
        if len(head) == 10 and head[:2] == b"\x1f\x8b" and (head[3] & 0x08 or head[4:8] != bytes(4)):
            return f"{path.name}: a name or a time is in its head"
    return None


def _row(package: Package, name: str) -> dict[str, Any]:
    if not (package.source / f"{name}.jsonl").is_file():
        raise BlockedError("export_files_are_there", f"{name}.jsonl is missing")
    return package.row(name)


def _without_columns(package: Package, kind: str, columns: tuple[str, ...]) -> str | None:
    for where, row in package.exported(kind):
        absent = [column for column in columns if column not in row]
        if absent:
            return f"{where}: {', '.join(absent)} missing"
    return None
