"""Write what the site says of the run itself: graph of the rules, time and memory, the longest path."""

from pathlib import Path

from saeflow.publish.site import data
from saeflow.publish.site import run as runs
from saeflow.rule import run


def main(*, manifest: Path, page_data: Path, cfg: dict) -> None:
    """
    Arguments:
        manifest: MANIFEST.sha256 of the finished study; logs and benchmarks lie beside it.
        page_data: .js to write.
        cfg: `metadata` (folder in which Snakemake keeps what it knows of every file).
    """
    data.write(page_data, "run", runs.describe(manifest.parent, Path(cfg["metadata"])))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
