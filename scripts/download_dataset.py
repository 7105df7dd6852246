"""Download the files of an image set, each from the first mirror that gives it with the right digest.

A file gets its name only after its digest was compared. A failed download is tried again by the rule's `retries`.
"""

from pathlib import Path

from saeflow.datasets import published
from saeflow.rule import run


def main(*, raw: Path, cfg: dict) -> None:
    """
    Arguments:
        raw: folder to fill.
        cfg: `dataset` (section), for its `name`.
    """
    published.download(cfg["dataset"]["name"], raw)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
