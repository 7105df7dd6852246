"""Write what the site's feature explorer loads: an index of every SAE's features, and their pages in chunks."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from saeflow.datasets.images import ImageDataset
from saeflow.publish.site import features
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(*, dataset: Path, tables: list[Path], arrays: list[Path], folder: Path) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        tables, arrays: .parquet and .npz of `analyze_features`, in the same order.
        folder: to write.
    """
    saes = []
    for table, archive in zip(tables, arrays, strict=True):
        with np.load(archive, allow_pickle=False) as content:
            saes.append(features.ImageFeatures(pd.read_parquet(table), dict(content)))
    features.write(saes, ImageDataset.load(dataset).train, folder)
    log.info("%d features of %d SAEs", sum(len(sae.table) for sae in saes), len(saes))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
