"""Measure every hierarchical SAE of one model at each of its steps, and compare arms at the budget of the study."""

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from saeflow.config import geometry
from saeflow.geometry import comparison, spaces
from saeflow.geometry.concepts import Concepts
from saeflow.geometry.contexts import LabelledContexts
from saeflow.geometry.evaluation import Bench, evaluate
from saeflow.reproduce import child_seed
from saeflow.rule import run
from saeflow.sae.hierarchical import HierarchicalSAEs


def main(
    *,
    labelled: Path,
    words: Path,
    teacher: Path,
    weights: Path,
    metrics: Path,
    concepts: Path,
    verdicts: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        labelled, words, teacher, weights: of `label_contexts`, `build_concepts`, `measure_geometry` and
            `train_hierarchical_saes`.
        metrics: table to write, a row per SAE and step.
        concepts: table to write, a row per SAE, step and parent.
        verdicts: table to write: the taught arm and its control against the baseline of the same schedule.
        cfg: `hierarchical` (section), `bootstrap`, `seed` (root of the draws).
    """
    spec = geometry.HierarchicalSAEs.model_validate(cfg["hierarchical"])
    kept, contexts = Concepts.load(words), LabelledContexts.load(labelled)
    with np.load(teacher, allow_pickle=False) as stored:
        arrays = dict(stored)
    rows = arrays["rows"]
    place = np.full(max(int(rows.max()), int(contexts.next_token.max())) + 1, -1)
    place[rows] = np.arange(len(rows))
    train, select, test = map(contexts.part, ("train", "select", "test"))
    benches = {
        name: Bench(spaces.Space.of(arrays, name, train.h), select, test, kept, place[kept.tokens], place)
        for name in sorted({arm.space for arm in spec.arms.values()})
    }
    tensors, found, of_concepts = load_file(weights), [], []
    for name, arm in spec.arms.items():
        bench = benches[arm.space]
        x = bench.space.coordinates(train.h)
        taught = spaces.taught(arm.start, arm.space, arrays, kept.parent_of, x, train)
        for seed in spec.seeds:
            for step in spec.steps:
                prefix = f"{name}/{seed}/{step}/"
                parameters = {n.removeprefix(prefix): t[None] for n, t in tensors.items() if n.startswith(prefix)}
                sae = HierarchicalSAEs(parameters, arm.k * (2 if arm.flat else 1))
                numbers, by_concept = evaluate(sae, bench, None if taught is None else taught.parents.numpy())
                identity = {"arm": name, "seed": seed, "step": step}
                found.append(identity | numbers)
                of_concepts += [identity | row for row in by_concept]
    table, by_concept = pd.DataFrame(found), pd.DataFrame(of_concepts)
    table.to_parquet(metrics, index=False)
    by_concept.to_parquet(concepts, index=False)
    rng = np.random.default_rng(child_seed(cfg["seed"], "comparison"))
    compared = comparison.compare(table, by_concept, spec.budget, cfg["bootstrap"], rng)
    compared.to_parquet(verdicts, index=False)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
