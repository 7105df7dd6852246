"""Measure every SAE of one hook point on data held out: alone, and spliced into its network."""

from itertools import product
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.rule import run
from saeflow.sae import formats
from saeflow.sae.effects import EFFECTS


def main(
    *, network: list[Path], given: list[Path], stores: list[Path], saes: list[Path], metrics: Path, cfg: dict
) -> None:
    """
    Arguments:
        network, given: files of the network and of its input.
        stores: manifest.json of each member's held-out store.
        saes: cfg.json of each SAE, in the order members x variants x SAE seeds.
        metrics: table to write, a row per SAE; `saeflow.sae.metrics` has the formula of each column, cross-entropies
            are in nats per token.
        cfg: `kind` of the network, what its module in `saeflow.sae.effects` takes, `members` (columns that say which,
            for each), `variants`, `sae_seeds`, `device`.
    """
    keys = list(product(cfg["variants"], cfg["sae_seeds"]))
    loaded = [formats.load(path.parent, cfg["device"]) for path in saes]
    of_members = [dict(zip(keys, loaded[i * len(keys) : (i + 1) * len(keys)], strict=True)) for i in range(len(stores))]
    opened = [ActivationStore.open(path) for path in stores]
    rows = [
        cfg["members"][member] | {"variant": variant, "sae_seed": seed} | measured
        for member, (variant, seed), measured in EFFECTS[cfg["kind"]](network, given, opened, of_members, cfg)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), metrics)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
