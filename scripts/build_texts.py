"""Build the study's text as one Parquet file of documents: the embedded corpus, or the files of a folder.

Of a folder are taken the first documents, as many as are enough for the tokens that the study asks for.
"""

import logging
from pathlib import Path

from saeflow.config.language import Text
from saeflow.datasets import corpus, texts
from saeflow.datasets.hierarchy import Hierarchy
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(*, raw: list[Path], documents: Path, cfg: dict) -> None:
    """
    Arguments:
        raw: text or Parquet files, or the one hierarchy of nouns that the embedded corpus is made from.
        documents: .parquet to write.
        cfg: `text` (section) and `seed` (root of the draws of the embedded corpus and of the splits).
    Raises:
        TextError: text that cannot be read, or too few documents for two splits.
    """
    text = Text.model_validate(cfg["text"])
    seed, asked = cfg["seed"], text.train_tokens + text.held_out_tokens
    if text.folder is None:
        found = corpus.documents(Hierarchy.load(raw[0]), text.documents, seed)
    else:
        read = texts.documents_of(raw, text.separator, text.column)
        found = texts.enough(read, asked, seed=seed, held_out_share=text.held_out_share)
    n = texts.write(documents, found)
    log.info("%d documents of %d files", n, len(raw))
    texts.check_splits(n, len(raw), text, seed)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
