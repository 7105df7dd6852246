"""Build the study's image set as one array file: scikit-learn's digits, or the files of a set with MNIST's layout.

Every file of known digest is checked against it, and every file's header and length against what they should be.
"""

from pathlib import Path

from saeflow import config
from saeflow.datasets import images
from saeflow.rule import run


def main(*, raw: list[Path], dataset: Path, cfg: dict) -> None:
    """
    Arguments:
        raw: raw files, or the one folder that they are in; none for the embedded digits.
        dataset: .npz to write.
        cfg: `dataset` (section) and `seed` (root, splits the digits).
    """
    folder = next((path if path.is_dir() else path.parent for path in raw), None)
    images.build(config.Data.model_validate(cfg["dataset"]), seed=cfg["seed"], folder=folder).save(dataset)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
