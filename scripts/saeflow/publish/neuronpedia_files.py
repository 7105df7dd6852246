"""The two doors of Neuronpedia as files: request bodies of its upload API, and its import directory."""

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from saeflow.publish import feature_rows, neuronpedia_rows
from saeflow.publish.identity import Identity

UPLOAD, EXPORT = "upload", "export"


def write(folder: Path, features: Path, identity: Identity, n_layers: int | None = None) -> int:
    """Write both below a folder, from one pass over the features; dead ones are left out, as Neuronpedia refuses them.

    `upload/batch-0000.json` and so on are bodies of requests. `export/<model>/<source>/` has `release.jsonl`,
    `model.jsonl`, `sourceset.jsonl`, `source.jsonl`, `features/batch-0.jsonl.gz`, `activations/batch-0.jsonl.gz`. Equal
    content is equal bytes: ids are digests, dates are stated, gzip carries neither name nor time.

    Arguments:
        features: folder with `features.parquet`, `contexts.parquet`, `summary.json`.
        n_layers: of the model, where it is known.
    Returns:
        the number of features written.
    Raises:
        ValueError: a number that is none, or no living feature.
    """
    about = feature_rows.summary(features)
    source = folder / EXPORT / identity.np_model / identity.np_source
    for place in (folder / UPLOAD, source / "features", source / "activations"):
        place.mkdir(parents=True, exist_ok=True)
    for name, row in neuronpedia_rows.table_rows(identity, about, n_layers).items():
        (source / f"{name}.jsonl").write_text(_line(row), encoding="utf-8")
    data_source = str(about.get("dataset") or about["study"])
    n, alive = 0, (row for row in feature_rows.read(features) if row.alive)
    for number, rows in enumerate(_batched(alive, neuronpedia_rows.BATCH)):
        body = {"modelId": identity.np_model, "source": identity.np_source}
        body["features"] = [neuronpedia_rows.uploaded(row) for row in rows]
        (folder / UPLOAD / f"batch-{number:04}.json").write_text(_line(body), encoding="utf-8")
        with _compressed(source / "features" / f"batch-{number}.jsonl.gz") as file:
            file.writelines(_line(neuronpedia_rows.feature_row(row, identity)) for row in rows)
        with _compressed(source / "activations" / f"batch-{number}.jsonl.gz") as file:
            for row in rows:
                file.writelines(map(_line, neuronpedia_rows.activation_rows(row, identity, data_source)))
        n += len(rows)
    if not n:
        raise ValueError(f"{features}: no feature fires; there is nothing to publish")
    return n


def _line(row: Mapping[str, Any]) -> str:
    """JSON on one line; NaN is refused, and the order of the keys is that of the row."""
    return json.dumps(row, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


@contextmanager
def _compressed(path: Path) -> Iterator[TextIO]:
    with (
        open(path, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        yield text


def _batched(rows: Iterator[feature_rows.FeatureRow], n: int) -> Iterator[list[feature_rows.FeatureRow]]:
    batch: list[feature_rows.FeatureRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == n:
            yield batch
            batch = []
    if batch:
        yield batch
