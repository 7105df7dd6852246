"""Train hierarchical SAEs of one model: every arm and seed, those of one shape as one stack, kept at several steps."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from saeflow.config.geometry import HierarchicalSAEs
from saeflow.geometry import spaces
from saeflow.geometry.concepts import Concepts
from saeflow.geometry.contexts import LabelledContexts
from saeflow.reproduce import child_seed
from saeflow.rule import run
from saeflow.sae.hierarchical_training import Member, Objective, Schedule, Shape, Trainer


def main(*, labelled: Path, words: Path, teacher: Path, weights: Path, curves: Path, cfg: dict) -> None:
    """
    Arguments:
        labelled, words, teacher: of `label_contexts`, `build_concepts` and `measure_geometry`.
        weights: .safetensors to write; its tensors are `<arm>/<seed>/<step>/<parameter>`.
        curves: table to write: the loss and its terms along the training.
        cfg: `hierarchical` (section), `seed` (root of the draws), `device`.
    """
    spec = HierarchicalSAEs.model_validate(cfg["hierarchical"])
    train, parent_of = LabelledContexts.load(labelled).part("train"), Concepts.load(words).parent_of
    with np.load(teacher, allow_pickle=False) as stored:
        arrays = dict(stored)
    tables = {}
    for name in sorted({arm.space for arm in spec.arms.values()}):
        tables[name] = torch.tensor(spaces.Space.of(arrays, name, train.h).coordinates(train.h))
    stacks: dict[Shape, list[Member]] = {}
    for name, arm in spec.arms.items():
        x = tables[arm.space].numpy()
        directions = spaces.taught(arm.start, arm.space, arrays, parent_of, x, train)
        if arm.flat:
            shape = Shape(spec.parents * (1 + spec.children), 0, 0, 2 * arm.k)
        else:
            shape = Shape(spec.parents, spec.children, spec.rank, arm.k)
        frozen = round(arm.frozen_share * spec.steps[0])
        for seed in spec.seeds:
            root = child_seed(cfg["seed"], "hierarchical", seed)
            stacks.setdefault(shape, []).append(Member(f"{name}/{seed}", root, arm.space, directions, frozen))
    objective = Objective(spec.top_weight, spec.sparsity_weight, spec.biorthogonality_weight, spec.causal_weight)
    schedule = Schedule(spec.steps[-1], spec.batch_size, spec.learning_rate, spec.warmup_steps)
    tensors, rows = {}, []
    for number, (shape, members) in enumerate(stacks.items()):
        training = Trainer(members, shape, tables, objective, schedule, cfg["device"])
        checkpoint = weights.with_suffix(f".checkpoint-{number}")
        if checkpoint.is_file() and spec.checkpoint_steps:
            training.resume(checkpoint)
        for step, saes in training.snapshots(spec.steps, spec.checkpoint_steps, checkpoint):
            for i, member in enumerate(members):
                for name, tensor in saes.member(i).parameters.items():
                    tensors[f"{member.name}/{step}/{name}"] = tensor[0].cpu().clone()
        for step, line in training.records:
            for i, member in enumerate(members):
                arm, seed = member.name.split("/")
                values = dict(zip(Trainer.COLUMNS, line[:, i].tolist(), strict=True))
                rows.append({"arm": arm, "seed": int(seed), "step": step, **values})
    save_file(tensors, weights)
    pd.DataFrame(rows).to_parquet(curves, index=False)
    for checkpoint in weights.parent.glob(f"{weights.stem}.checkpoint-*"):
        checkpoint.unlink()


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
