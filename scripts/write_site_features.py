"""Write what the site's feature explorer loads: an index of every SAE's features, and their pages in chunks."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from saeflow.datasets.images import ImageDataset
from saeflow.publish.site import features
from saeflow.publish.site import inversion as inversion_tables
from saeflow.publish.site.text_features import TextFeatures
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(
    *,
    dataset: Path | list[Path],
    tables: list[Path],
    arrays: list[Path],
    texts: list[Path],
    contexts: list[Path],
    summaries: list[Path],
    concepts: list[Path],
    inversion: list[Path],
    folder: Path,
) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`; empty without SAEs on images.
        tables, arrays: .parquet and .npz of `analyze_features`, in the same order.
        texts, contexts, summaries: features.parquet, contexts.parquet and summary.json of `analyze_features`,
            in the same order.
        concepts: scores.parquet of `test_concepts`, in that order.
        inversion: tables of each SAE's inversion, below folders of its model, hook point and variant; none without one.
        folder: to write.
    """
    saes: list[features.Features] = []
    images = ImageDataset.load(dataset) if tables else None
    for table, archive in zip(tables, arrays, strict=True):
        with np.load(archive, allow_pickle=False) as content:
            saes.append(features.ImageFeatures(pd.read_parquet(table), dict(content), len(images.test.labels)))
    inverted = inversion_tables.read(inversion)
    for paths in zip(texts, contexts, summaries, concepts, strict=True):
        table, context, scores = (pd.read_parquet(paths[i]) for i in (0, 1, 3))
        one = TextFeatures(table, context, json.loads(paths[2].read_text(encoding="utf-8")), scores)
        saes.append(replace(one, inverted=inverted.get(one.name, {})))
    features.write(saes, folder, images and images.train)
    log.info("%d features of %d SAEs", sum(map(len, saes)), len(saes))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
