"""Measure every SAE of one architecture, role and hook point on held-out images, alone and spliced into its network."""

from itertools import product
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.datasets.images import ImageDataset
from saeflow.models import classifiers
from saeflow.rule import run
from saeflow.sae import formats
from saeflow.sae.metrics import evaluate


def main(*, dataset: Path, weights: Path, stores: list[Path], saes: list[Path], metrics: Path, cfg: dict) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`.
        stores: manifest.json of each seed's held-out store.
        saes: cfg.json of each SAE, in the order seeds x variants x SAE seeds.
        metrics: table to write, a row per SAE; `saeflow.sae.metrics` has the formula of each column.
        cfg: `seeds`, `variants`, `sae_seeds`, `architecture`, `role`, `hook`, `device`.
    """
    labels = torch.from_numpy(ImageDataset.load(dataset).test.labels)
    networks = classifiers.load(weights, cfg["device"], cfg["seeds"])
    opened = {seed: ActivationStore.open(path) for seed, path in zip(cfg["seeds"], stores, strict=True)}
    rows = []
    for (seed, variant, sae_seed), path in zip(product(opened, cfg["variants"], cfg["sae_seeds"]), saes, strict=True):
        store, member = opened[seed], networks.member(cfg["seeds"].index(seed))
        measured = evaluate(
            formats.load(path.parent, cfg["device"]),
            store.rows(slice(None), cfg["device"]),
            logits=lambda x, member=member: member.run_from(cfg["hook"], x[None])[0],
            labels=labels[store.source()[:, store.source_columns.index("image")].long()],
        )
        identity = {"architecture": cfg["architecture"], "role": cfg["role"], "hook_point": cfg["hook"]}
        rows.append({**identity, "seed": seed, "variant": variant, "sae_seed": sae_seed, **measured})
    parquet.write_table(pa.Table.from_pylist(rows), metrics)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
