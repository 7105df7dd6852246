"""Build the study's image set as one array file: scikit-learn's digits, or the files of a set with MNIST's layout.

Every file of known digest is checked against it, and every file's header and length against what they should be.
"""

from pathlib import Path

from saeflow import config
from saeflow.datasets import images
from saeflow.rule import run


def main(*, dataset: Path, cfg: dict, raw: Path | None = None) -> None:
    """
    Arguments:
        dataset: .npz to write.
        raw: folder with the raw files; not used by the embedded digits.
        cfg: `dataset` (section) and `seed` (root, splits the digits).
    """
    images.build(config.Data.model_validate(cfg["dataset"]), seed=cfg["seed"], folder=raw).save(dataset)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
