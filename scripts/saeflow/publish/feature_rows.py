"""The features of an SAE on a language model with their contexts, a few at a time."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

FEATURES, CONTEXTS, SUMMARY = "features.parquet", "contexts.parquet", "summary.json"
_ROWS = 2048


class FeatureRow(NamedTuple):
    """One latent: its row of `features.parquet` and its rows of `contexts.parquet`, the strongest first."""

    feature: dict[str, Any]
    contexts: list[dict[str, Any]]

    @property
    def alive(self) -> bool:
        """Whether it fires, and is shown firing."""
        return not self.feature["dead"] and any(context["activation"] > 0 for context in self.contexts)


def read(folder: Path) -> Iterator[FeatureRow]:
    """All latents in their order; only a few thousand rows of either file are in memory at a time.

    Raises:
        ValueError: contexts of a feature that is not there, or out of order.
    """
    by_feature = groupby(_rows(folder / CONTEXTS), key=lambda row: row["feature"])
    ahead = next(by_feature, None)
    for feature in _rows(folder / FEATURES):
        own: list[dict[str, Any]] = []
        if ahead is not None and ahead[0] == feature["feature"]:
            own = list(ahead[1])
            ahead = next(by_feature, None)
        yield FeatureRow(feature, own)
    if ahead is not None:
        raise ValueError(f"{folder / CONTEXTS}: feature {ahead[0]} is not in {FEATURES}, or out of order")


def summary(folder: Path) -> dict[str, Any]:
    """What the analysis says of the SAE as a whole."""
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches(_ROWS):
        yield from batch.to_pylist()
