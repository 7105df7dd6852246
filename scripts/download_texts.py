"""Download the study's text from the Hugging Face hub: the first documents of a data set, enough for its tokens.

A failed download is tried again by the rule's `retries`.
"""

import logging
from pathlib import Path

from saeflow import config_language
from saeflow.datasets import texts
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(*, documents: Path, cfg: dict) -> None:
    """
    Arguments:
        documents: .parquet to write.
        cfg: `text` (section).
    """
    text = config_language.Text.model_validate(cfg["text"])
    found = texts.enough(texts.documents_of_hub(text), text.train_tokens + text.held_out_tokens)
    log.info("%d documents", texts.write(documents, found))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
