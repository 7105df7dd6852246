"""Train the SAEs of one hook point, of all members of a network, or one job's share of them; saved for SAELens."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.config.saes import SAEs
from saeflow.rule import run
from saeflow.sae import fitting, formats, health, sharing


def main(*, network: list[Path], stores: list[Path], saes: list[Path], curves: list[Path], cfg: dict) -> None:
    """
    Arguments:
        network: files of a network whose output the SAEs are trained on as well (`splice_kl`); else none.
        stores: manifest.json of each member's training store.
        saes: cfg.json of each SAE to write, in the order of `saeflow.sae.sharing.jobs`.
        curves: tables to write, one per SAE, a row per recorded training step.
        cfg: `saes` (section), `shard` (which of its jobs this is), `members` (columns that say which, for each),
            `origins` (what SAELens is to know of each), `seeds` of a network that is spliced, `hook`, `seed` (root of
            the draws), `device`.
    Raises:
        FittingError: SAEs that diverged, died or miss their target; the others are written before.
    """
    spec = SAEs.model_validate(cfg["saes"])
    opened = [ActivationStore.open(path) for path in stores]
    keys = sharing.jobs(spec, len(opened), cfg["device"])[cfg["shard"]]
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
        splice=_spliced(network, cfg) if network else None,
        checkpoint=checkpoint,
        check=health.check,
        finished=finished,
    ):
        path, curve = outputs[key]
        stored = opened[key.store].metadata
        origin = {"hook_name": stored["hook_point"], **cfg["origins"][key.store]}
        if "context_size" in stored:
            origin |= {"context_size": stored["context_size"], "prepend_bos": stored["start_token"] is not None}
        variant = spec.variants[key.variant].model_dump(mode="json") | {"name": key.variant, "seed": key.seed}
        formats.save(result.sae, path.parent, origin | {"variant": variant})
        identity = cfg["members"][key.store] | {"variant": key.variant, "sae_seed": key.seed}
        parquet.write_table(pa.Table.from_pylist([identity | row for row in fitting.curves(result)]), curve)


def _spliced(network: list[Path], cfg: dict) -> fitting.Splice:
    from saeflow.models import classifiers
    from saeflow.models.splicing import SplicedOutput

    return SplicedOutput(classifiers.load(network[0], cfg["device"], cfg["seeds"]), cfg["hook"])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
