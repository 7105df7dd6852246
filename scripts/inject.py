"""Run one injection method: every variant, control, pair of architectures and seed, measured once on the test split.

Wall-clock times go to a table of their own, because they differ at each run.
"""

import inspect
from pathlib import Path

from pyarrow import csv, parquet

from saeflow.config.images import Classifiers
from saeflow.config.injection import Injection
from saeflow.datasets.images import ImageDataset
from saeflow.injection import concept_saes, study
from saeflow.injection.materials import Materials
from saeflow.injection.method import method
from saeflow.reproduce import write_json
from saeflow.rule import run


def main(
    *,
    dataset: Path,
    weights: list[Path],
    values: Path,
    saes: Path | list[Path],
    measures: Path,
    curve: Path,
    intervals: Path,
    confusion: Path,
    examples: Path,
    about: Path,
    seconds: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`, of every role and architecture that methods can reach.
        values: .safetensors of `capture_injection`.
        saes: .safetensors of `train_concept_saes`; empty for a method that needs none.
        measures, curve, intervals, confusion, examples, seconds: tables to write, as
            `saeflow.injection.study.Results` has them.
        about: .json to write: the method's equation and source, and what each variant uses.
        cfg: `method`, `pairs` ([source, target] architectures), `injection` and `classifiers` (sections), `seed` (root
            of the draws), `device`.
    """
    data = ImageDataset.load(dataset)
    spec = Injection.model_validate(cfg["injection"])
    roles = Classifiers.model_validate(cfg["classifiers"])
    materials = Materials.of(
        data,
        spec,
        roles,
        weights,
        seed=cfg["seed"],
        device=cfg["device"],
        concept_saes=concept_saes.load(saes, cfg["device"]) if saes else {},
        values=values,
    )
    kind = method(cfg["method"])
    variants = kind.variants(spec)
    pairs, seeds = list(map(tuple, cfg["pairs"])), roles.seeds_of(spec.target)
    results = study.run(variants, materials, data.calibration, data.test, pairs, seeds)
    parquet.write_table(results.measures, measures)
    parquet.write_table(results.curve, curve)
    parquet.write_table(results.intervals, intervals)
    parquet.write_table(results.confusion, confusion)
    parquet.write_table(results.examples, examples)
    csv.write_csv(results.seconds, seconds)
    described = [{"variant": v.variant, "tier": v.tier, "site": v.site} for v in variants]
    content = {"method": kind.name, "family": kind.family, "text": inspect.getdoc(kind), "variants": described}
    write_json(about, content | {"equal_architectures": kind.equal_architectures})


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
