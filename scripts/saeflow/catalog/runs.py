"""Runs as the catalog takes them, read from the files of a study's folder."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saeflow.catalog import contexts
from saeflow.reproduce import sha256_file

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FEATURES, CONTEXTS, SUMMARY = "features.parquet", "contexts.parquet", "summary.json"
Row = dict[str, Any]


class RunError(ValueError):
    """A run whose files are not what the catalog expects; names the file and what is wrong."""


@dataclass(frozen=True)
class Run:
    """Rows of one run by table, as `saeflow.catalog.schema` has their columns, without `run_id` and `loaded_at`."""

    training_run: Row
    sae: Row | None = None
    features: list[Row] = field(default_factory=list)
    curve: list[Row] = field(default_factory=list)
    concepts: list[Row] = field(default_factory=list)
    injections: list[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.training_run["name"]


def tables_of(study: Path) -> list[Path]:
    """The files of a study's folder that stand for a run each: feature tables, and the measures of injection.

    Raises:
        RunError: no such folder, or none in it.
    """
    if not study.is_dir():
        raise RunError(f"{study}: no such folder; a study's results are in results/<study>")
    found = [*study.glob("features/*/*/*/features.parquet"), *study.glob("language/features/*/*/*/features.parquet")]
    found += study.glob("injection/tables/measures.parquet")
    if not found:
        raise RunError(f"{study}: holds no feature table and no injection result; build the study first")
    return sorted(found)


def read(study: Path, table: Path) -> Run:
    """The run that a file of the study's folder stands for.

    Raises:
        RunError: files missing or of another form.
    """
    place = table.relative_to(study).parts
    try:
        if place[0] == "injection":
            return _injection(study, table)
        return _language(study, table) if place[0] == "language" else _vision(study, table)
    except FileNotFoundError as error:
        raise RunError(f"{error.filename}: not there, but {table} needs it; build the study first") from None
    except KeyError as error:
        raise RunError(f"{table}: column or key {error} is missing from its files") from None


def sae_folder(study: Path, features: Path, seed: int | None = None) -> Path:
    """Directory of the SAE whose features lie in a folder: the same path below `saes`.

    Arguments:
        seed: of the SAE, where the folder of its features does not name it.
    """
    parts = list(features.relative_to(study).parts)
    parts[parts.index("features")] = "saes"
    folder = study.joinpath(*parts)
    return folder if seed is None else folder.with_name(f"{folder.name}-s{seed}")


def _language(study: Path, table: Path) -> Run:
    folder = table.parent
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    sae = sae_folder(study, folder, summary["seed"])
    spec = _config(sae)
    files = [table, folder / CONTEXTS, folder / SUMMARY, sae / CONFIG, sae / WEIGHTS]
    curve, scores = sae.with_name(f"{sae.name}.curves.parquet"), folder / "concepts" / "scores.parquet"
    identity = {
        "name": f"{study.name}/{summary['model']}/{summary['hook_point']}/{summary['variant']}",
        "kind": "language",
        **{key: summary.get(key) for key in ("model", "model_revision", "hook_point", "variant", "seed")},
    }
    metrics = {key: _number(value) for key, value in summary.items() if isinstance(value, int | float)}
    return Run(
        _run(study, identity, spec, files + [path for path in (curve, scores) if path.is_file()], sae / WEIGHTS),
        _sae(study, spec, sae, folder, metrics),
        list(_language_features(table, folder / CONTEXTS)),
        _curve(curve),
        _concepts(scores),
    )


def _language_features(table: Path, contexts_path: Path) -> Iterator[Row]:
    by_feature = groupby(contexts.peaks(contexts_path), key=lambda peak: peak.feature)
    ahead = next(by_feature, None)
    kept = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits", "neighbours", "neighbour_coactivation")
    for batch in pq.ParquetFile(table).iter_batches(2048):
        for row in batch.to_pylist():
            found: Sequence[contexts.Peak] = ()
            if ahead is not None and ahead[0] == row["feature"]:
                found = list(ahead[1])
                ahead = next(by_feature, None)
            score, label = (None, "dead") if row["dead"] else contexts.reading(found, row["top_tokens"])
            examples = contexts.examples(found)
            words = [label, *row["top_tokens"], *(e["before"] + e["token"] + e["after"] for e in examples)]
            yield {
                **{key: row[key] for key in ("feature", "dead")},
                **{key: _number(row[key]) for key in ("density", "mean_activation", "max_activation", "decoder_norm")},
                "interpretability": score,
                "label": _text(label),
                "searchable": _text("\n".join(words).lower()),
                "evidence": _clean(
                    {key: row[key] for key in (*kept, "histogram", "bin_edges")} | {"examples": examples}
                ),
            }
    if ahead is not None:
        raise RunError(f"{contexts_path}: feature {ahead[0]} is not in {table}, or out of order")


def _vision(study: Path, table: Path) -> Run:
    folder = table.parent
    sae = sae_folder(study, folder)
    spec = _config(sae)
    rows = pq.read_table(table).to_pylist()
    first = rows[0]
    group = ("architecture", "role", "hook_point", "seed", "variant", "sae_seed")
    key = {name: first[name] for name in group}
    measured = sae.parents[1].with_name(f"{key['architecture']}-{key['role']}") / f"{key['hook_point']}.metrics.parquet"
    metrics = next((row for row in pq.read_table(measured).to_pylist() if key.items() <= row.items()), None)
    if metrics is None:
        raise RunError(f"{measured}: has no row of {key}")
    curve = sae.with_name(f"{sae.name}.curves.parquet")
    model = f"{key['architecture']}-{key['role']}-s{key['seed']}"
    variant = f"{key['variant']}-s{key['sae_seed']}"
    identity = {
        "name": f"{study.name}/{model}/{key['hook_point']}/{variant}",
        "kind": "vision",
        "model": model,
        "hook_point": key["hook_point"],
        "variant": variant,
        "seed": key["sae_seed"],
    }
    return Run(
        _run(study, identity, spec, [table, measured, curve, sae / CONFIG, sae / WEIGHTS], sae / WEIGHTS),
        _sae(study, spec, sae, folder, {name: _number(v) for name, v in metrics.items() if name not in group}),
        [_vision_feature(row, group) for row in rows],
        _curve(curve),
    )


def _vision_feature(row: Row, group: Sequence[str]) -> Row:
    return {
        "feature": row["latent"],
        "dead": row["dead"],
        "density": _number(row["activation_rate"]),
        "mean_activation": _number(row["mean_active"]),
        "max_activation": _number(row["max_active"]),
        "decoder_norm": _number(row["decoder_norm"]),
        "interpretability": None if row["dead"] else _number(row["auroc"]),
        "label": _text(row["hypothesis"]),
        "searchable": _text(row["hypothesis"].lower()),
        "evidence": _brief({name: value for name, value in row.items() if name not in group}),
    }


def _injection(study: Path, table: Path) -> Run:
    named = ("method", "variant", "tier", "control", "source", "target", "seed", "concept")
    shares = ("transfer", "preservation", "specificity")
    rows = [
        {"position": position}
        | {name: row[name] for name in named}
        | {name: _number(row[name]) for name in shares}
        | {"measures": _clean(row)}
        for position, row in enumerate(pq.read_table(table).to_pylist())
    ]
    identity = {"name": f"{study.name}/injection", "kind": "injection"}
    return Run(_run(study, identity, {}, [table], table), injections=rows)


def _run(study: Path, identity: Row, spec: Mapping[str, Any], files: Sequence[Path], written: Path) -> Row:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(study).as_posix()} {sha256_file(path)}\n".encode())
    empty = dict.fromkeys(("model", "model_revision", "hook_point", "variant", "seed"))
    return {
        **empty,
        **identity,
        "study": study.name,
        "digest": digest.hexdigest(),
        "config": _clean((spec.get("metadata") or {}).get("variant") or {}),
        "written_at": datetime.fromtimestamp(written.stat().st_mtime, UTC),
    }


def _sae(study: Path, spec: Row, sae: Path, features: Path, metrics: Mapping[str, Any]) -> Row:
    columns = ("l0", "explained_variance", "dead_share", "accuracy_change_pp", "n_tokens")
    found = {name: metrics.get(name) for name in columns}
    found |= {f"ce_recovered_{kind}": metrics.get(f"ce_recovered_{kind}") for kind in ("zero", "mean")}
    return {
        **{name: spec[name] for name in ("architecture", "d_in", "d_sae", "dtype")},
        "path": sae.relative_to(study).as_posix(),
        "features_path": features.relative_to(study).as_posix(),
        "weights_sha256": sha256_file(sae / WEIGHTS),
        **found,
        "metrics": _clean(metrics),
    }


def _config(sae: Path) -> Row:
    try:
        return json.loads((sae / CONFIG).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{sae / CONFIG}: truncated or not JSON ({error})") from None


def _curve(path: Path) -> list[Row]:
    """Numbers of the training curve, one row each; empty where the trainer wrote none."""
    if not path.is_file():
        return []
    table = pq.read_table(path)
    steps = table["step"].to_pylist()
    names = [f.name for f in table.schema if f.name not in ("step", "seed", "sae_seed") and _is_number(f.type)]
    return [
        {"step": step, "metric": name, "value": _number(value)}
        for name in names
        for step, value in zip(steps, table[name].to_pylist(), strict=True)
    ]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _concepts(path: Path) -> list[Row]:
    columns = ("concept", "rank", "feature", "auroc_train", "auroc", "selectivity", "null_p95")
    columns += ("control_auroc", "dense_auroc", "probe_auroc", "passed")
    if not path.is_file():
        return []
    return [{name: row[name] for name in columns} for row in pq.read_table(path).to_pylist()]


def _number(value: float | None) -> float | int | None:
    """The number, null for what is none."""
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _text(value: str) -> str:
    """Text as every database keeps it: PostgreSQL has no NUL."""
    return value.replace("\x00", "\N{SYMBOL FOR NULL}")


def _clean(value: Any) -> Any:
    """JSON without NaN and NUL."""
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return _text(value)
    return _number(value) if isinstance(value, float) else value


def _brief(value: Any) -> Any:
    """JSON as `_clean` has it, floats at the seven digits that single precision has."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _brief(inner) for key, inner in value.items()}
    return [_brief(inner) for inner in value] if isinstance(value, list) else _clean(value)
