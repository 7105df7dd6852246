"""Train the SAEs of one architecture, role and hook point, or one job's share of them; saved for SAELens."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.config.saes import SAEs
from saeflow.models import classifiers
from saeflow.models.splicing import SplicedOutput
from saeflow.rule import run
from saeflow.sae import fitting, formats, sharing


def main(*, weights: Path, stores: list[Path], saes: list[Path], curves: list[Path], cfg: dict) -> None:
    """
    Arguments:
        weights: .safetensors of `train_classifiers`.
        stores: manifest.json of each seed's training store.
        saes: cfg.json of each SAE to write, in the order of `saeflow.sae.sharing.jobs`.
        curves: tables to write, one per SAE, a row per recorded training step.
        cfg: `saes` (section), `shard` (which of its jobs this is), `seeds`, `architecture`, `role`, `hook`, `seed`
            (root of the draws), `device`.
    """
    spec = SAEs.model_validate(cfg["saes"])
    opened = [ActivationStore.open(path) for path in stores]
    keys = sharing.jobs(spec, len(opened), cfg["device"])[cfg["shard"]]
    splice = SplicedOutput(classifiers.load(weights, cfg["device"], cfg["seeds"]), cfg["hook"])
    # Beside the first SAE: Snakemake removes what a failed job leaves inside.
    checkpoint = saes[0].parent.with_name(f"{saes[0].parent.name}.checkpoint")
    finished = {
        key: path.parent.with_name(f"{path.parent.name}.finished") for key, path in zip(keys, saes, strict=True)
    }
    outputs = dict(zip(keys, zip(saes, curves, strict=True), strict=True))
    for key, result in fitting.fit(
        opened,
        spec,
        seed=cfg["seed"],
        keys=keys,
        device=cfg["device"],
        splice=splice,
        checkpoint=checkpoint,
        finished=finished,
    ):
        path, curve = outputs[key]
        metadata, seed = opened[key.store].metadata, cfg["seeds"][key.store]
        formats.save(
            result.sae,
            path.parent,
            {
                "model_name": f"{cfg['architecture']}-{cfg['role']}-s{seed}",
                "hook_name": metadata["hook_point"],
                "dataset_path": metadata["dataset"],
                "variant": spec.variants[key.variant].model_dump(mode="json") | {"name": key.variant, "seed": key.seed},
            },
        )
        identity = {"architecture": cfg["architecture"], "role": cfg["role"], "hook_point": cfg["hook"], "seed": seed}
        identity |= {"variant": key.variant, "sae_seed": key.seed}
        parquet.write_table(pa.Table.from_pylist([identity | row for row in fitting.curves(result)]), curve)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
