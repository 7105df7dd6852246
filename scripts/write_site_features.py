"""Write what the site's feature explorer loads: an index of every SAE's features, and their pages in chunks."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from saeflow.datasets.images import ImageDataset
from saeflow.publish.site import features
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
    folder: Path,
) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`; empty without SAEs on images.
        tables, arrays: .parquet and .npz of `analyze_features`, in the same order.
        texts, contexts, summaries: features.parquet, contexts.parquet and summary.json of `analyze_language_features`,
            in the same order.
        folder: to write.
    """
    saes: list[features.Features] = []
    images = ImageDataset.load(dataset).train if tables else None
    for table, archive in zip(tables, arrays, strict=True):
        with np.load(archive, allow_pickle=False) as content:
            saes.append(features.ImageFeatures(pd.read_parquet(table), dict(content), images))
    for table, context, summary in zip(texts, contexts, summaries, strict=True):
        about = json.loads(summary.read_text())
        saes.append(TextFeatures(pd.read_parquet(table), pd.read_parquet(context), about))
    features.write(saes, folder)
    log.info("%d features of %d SAEs", sum(map(len, saes)), len(saes))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
