"""Download a language model from the Hugging Face hub, at the commit that its revision names; the commit is noted.

Weights that are pickles are not fetched. A failed download is tried again by the rule's `retries`.
"""

from pathlib import Path

from saeflow.models import language_files
from saeflow.rule import run


def main(*, folder: Path, cfg: dict) -> None:
    """
    Arguments:
        folder: to fill.
        cfg: `snapshot` (name of the folder) and `snapshots`: `id`, `revision` and `trust_remote_code` of each.
    """
    wanted = cfg["snapshots"][cfg["snapshot"]]
    language_files.download(wanted["id"], wanted["revision"], folder, wanted["trust_remote_code"])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
