"""Build the study's image set as one array file: scikit-learn's digits, or the files of a set with MNIST's layout.

What is in a file is compared with what was published by its digest; where none is known, by header and length.
"""

import os
from pathlib import Path

from saeflow.config.images import Data
from saeflow.datasets import images
from saeflow.rule import run


def main(*, raw: list[Path], dataset: Path, cfg: dict) -> None:
    """
    Arguments:
        raw: raw files, or the one folder or archive that they are in; none for the embedded digits.
        dataset: .npz to write.
        cfg: `dataset` (section) and `seed` (root, splits the digits).
    """
    folder = os.path.commonpath(raw) if raw else None
    images.build(Data.model_validate(cfg["dataset"]), seed=cfg["seed"], folder=folder).save(dataset)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
