"""Train every SAE variant and seed on the stores of one architecture, role and hook point; saved for SAELens."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from saeflow import config
from saeflow.activations import ActivationStore
from saeflow.models import classifiers
from saeflow.models.splicing import SplicedOutput
from saeflow.rule import run
from saeflow.sae import fitting, formats


def main(*, weights: Path, stores: list[Path], saes: list[Path], curves: Path, cfg: dict) -> None:
    """
    Arguments:
        weights: .safetensors of `train_classifiers`.
        stores: manifest.json of each seed's training store.
        saes: cfg.json of each SAE to write, in the order seeds x variants x SAE seeds.
        curves: table to write, a row per recorded training step.
        cfg: `saes` (section), `seeds`, `architecture`, `role`, `hook`, `seed` (root of the draws), `device`.
    """
    spec = config.SAEs.model_validate(cfg["saes"])
    opened = [ActivationStore.open(path) for path in stores]
    splice = SplicedOutput(classifiers.load(weights, cfg["device"], cfg["seeds"]), cfg["hook"])
    results = dict(
        fitting.fit(
            opened,
            spec,
            seed=cfg["seed"],
            device=cfg["device"],
            splice=splice,
            checkpoint=curves.with_suffix(".checkpoint"),
        )
    )

    order = [fitting.Key(i, name, seed) for i in range(len(opened)) for name in spec.variants for seed in spec.seeds]
    for key, path in zip(order, saes, strict=True):
        metadata = opened[key.store].metadata
        formats.save(
            results[key].sae,
            path.parent,
            {
                "model_name": f"{cfg['architecture']}-{cfg['role']}-s{cfg['seeds'][key.store]}",
                "hook_name": metadata["hook_point"],
                "dataset_path": metadata["dataset"],
                "variant": spec.variants[key.variant].model_dump(mode="json") | {"name": key.variant, "seed": key.seed},
            },
        )
    identity = {"architecture": cfg["architecture"], "role": cfg["role"], "hook_point": cfg["hook"]}
    rows = [
        identity | {"seed": cfg["seeds"][row.pop("store")]} | row
        for row in fitting.curves({key: results[key] for key in order})
    ]
    parquet.write_table(pa.Table.from_pylist(rows), curves)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
