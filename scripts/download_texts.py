"""Download the study's text from the Hugging Face hub: the first documents of a data set, enough for its tokens.

A failed download is tried again by the rule's `retries`.
"""

import logging
from pathlib import Path

from saeflow.config.language import Text
from saeflow.datasets import texts
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(*, documents: Path, cfg: dict) -> None:
    """
    Arguments:
        documents: .parquet to write.
        cfg: `text` (section) and `seed` (root of the draw of the splits).
    Raises:
        TextError: a data set that cannot be had or read, or too few documents for two splits.
    """
    text = Text.model_validate(cfg["text"])
    seed, asked = cfg["seed"], text.train_tokens + text.held_out_tokens
    found = texts.enough(texts.documents_of_hub(text), asked, seed=seed, held_out_share=text.held_out_share)
    n = texts.write(documents, found)
    log.info("%d documents", n)
    texts.check_splits(n, 0, text, seed)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
