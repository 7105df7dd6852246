"""Work out what every feature stands for, for all SAEs of one network's hook point.

For each SAE: a Parquet table with a row per feature, and what lies beside it; `saeflow.features.analyses` has a module
for each kind of input.
"""

import logging
from itertools import product
from pathlib import Path

from saeflow.features.analyses import ANALYSES, Analyzed
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(
    *,
    network: list[Path],
    given: list[Path],
    train_stores: list[Path],
    held_out_stores: list[Path],
    metrics: list[Path],
    saes: list[Path],
    features: list[Path],
    beside: list[Path],
    cfg: dict,
) -> None:
    """
    Arguments:
        network, given: files of the network and of its input.
        train_stores, held_out_stores: manifest.json of each member's store of either split.
        metrics: table of `evaluate_saes`, if the analysis reads it.
        saes: cfg.json of each SAE, in the order members x variants x SAE seeds.
        features: tables to write, one per SAE.
        beside: the other files of the analysis, all of a kind before the next.
        cfg: `reads` (kind of the input), `splits` (their names), `members` (columns that say which, for each),
            `variants`, `sae_seeds`, and what the analysis takes.
    """
    keys = product(range(len(train_stores)), cfg["variants"], cfg["sae_seeds"])
    n = len(saes)
    others = zip(*(beside[i : i + n] for i in range(0, len(beside), n)), strict=True)
    analyzed = [
        Analyzed(*key, sae, table, tuple(files))
        for key, sae, table, files in zip(keys, saes, features, others, strict=True)
    ]
    stores = dict(zip(cfg["splits"], (train_stores, held_out_stores), strict=True))
    for line in ANALYSES[cfg["reads"]](network, given, stores, metrics, analyzed, cfg):
        log.info(line)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
