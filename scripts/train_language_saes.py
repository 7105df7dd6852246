"""Train the SAEs of one hook point of a language model from one stream of its activations, or one job's share of them;
saved for SAELens."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.config.saes import SAEs
from saeflow.rule import run
from saeflow.sae import fitting, formats, health, sharing


def main(*, store: Path, saes: list[Path], curves: list[Path], cfg: dict) -> None:
    """
    Arguments:
        store: manifest.json of the training split.
        saes: cfg.json of each SAE to write, in the order of `saeflow.sae.sharing.jobs`.
        curves: tables to write, one per SAE, a row per recorded training step.
        cfg: `saes` (section), `shard` (which of its jobs this is), `model`, `hook` (names), `origin` (what SAELens is
            to know of the model), `seed` (root of the draws), `device`.
    Raises:
        FittingError: SAEs that diverged, died or miss their target; the others are written before.
    """
    spec = SAEs.model_validate(cfg["saes"])
    opened = ActivationStore.open(store)
    keys = sharing.jobs(spec, 1, cfg["device"])[cfg["shard"]]
    checkpoint = saes[0].parent.with_name(f"{saes[0].parent.name}.checkpoint")
    finished = {
        key: path.parent.with_name(f"{path.parent.name}.finished") for key, path in zip(keys, saes, strict=True)
    }
    outputs = dict(zip(keys, zip(saes, curves, strict=True), strict=True))
    for key, result in fitting.fit(
        [opened],
        spec,
        seed=cfg["seed"],
        keys=keys,
        device=cfg["device"],
        checkpoint=checkpoint,
        check=health.check,
        finished=finished,
    ):
        path, curve = outputs[key]
        formats.save(
            result.sae,
            path.parent,
            {
                **cfg["origin"],
                "hook_name": cfg["hook"],
                "context_size": opened.metadata["context_size"],
                "prepend_bos": opened.metadata["start_token"] is not None,
                "variant": spec.variants[key.variant].model_dump(mode="json") | {"name": key.variant, "seed": key.seed},
            },
        )
        identity = {"model": cfg["model"], "hook_point": cfg["hook"], "variant": key.variant, "sae_seed": key.seed}
        parquet.write_table(pa.Table.from_pylist([identity | row for row in fitting.curves(result)]), curve)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
