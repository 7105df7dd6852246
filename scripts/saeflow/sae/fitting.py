"""Every SAE of a study on its stores: penalties calibrated to a target L0, all trained, thresholds adjusted."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow import config
from saeflow.reproduce import child_seed
from saeflow.sae.architectures import SparseAutoencoder, TopK
from saeflow.sae.calibration import Goal, adjust_threshold, calibrate_many, penalty_grid
from saeflow.sae.metrics import Sparsity
from saeflow.sae.sharing import Key, groups, is_searched, keys_of
from saeflow.sae.stack import Member, Splice
from saeflow.sae.trainer import TrainedSAE, train

log = logging.getLogger(__name__)

# Where the search for a penalty starts. Activations have mean squared norm d_in: an L1 penalty weighs against
# sqrt(d_in), an L0 penalty against d_in. Measured on 32- to 256-wide layers, these give L0 from about 40 down to 3.
_GRID = {config.ReLU: (0.02, 1.0, 0.5), config.Gated: (0.02, 1.0, 0.5), config.JumpReLU: (5e-4, 5e-2, 1.0)}
_GRID_POINTS = 4
_CALIBRATION_ROWS = 1 << 17


def fit(
    stores: Sequence[Any],
    saes: config.SAEs,
    *,
    seed: int,
    keys: Sequence[Key] | None = None,
    device: torch.device | str = "cpu",
    splice: Splice | None = None,
    checkpoint: Path | None = None,
) -> Iterator[tuple[Key, TrainedSAE]]:
    """Train every variant and seed on every store, or some of them.

    SAEs whose sparsity is given are trained together, in one pass over each store. Those with a `target_l0` are
    calibrated together, each round of the search being one pass. Every SAE but TopK then has its thresholds shifted, on
    calibration rows, to its target L0; the threshold of one with a given penalty stays as it was trained.

    Arguments:
        stores: activation stores of one width, as `saeflow.sae.trainer.train` takes them.
        saes: variants, seeds and training.
        seed: root of all draws.
        keys: SAEs to train, if not all: whole groups of `saeflow.sae.sharing.groups`, for the bytes of one job for all.
        splice: loss of the model's output, for variants with `splice_kl`.
        checkpoint: file that holds, with the pass's number behind its name, the state of a pass, as `train` takes it;
            an interrupted fit repeats the passes before the one in progress and goes on inside that.
    Returns:
        SAEs as they are done, in no particular order.
    Raises:
        CalibrationError: a target L0 that no penalty reaches.
    """

    keys = keys_of(saes, len(stores)) if keys is None else list(keys)
    stacked = groups(saes, len(stores), torch.device(device).type)
    group_of = {key: i for i, group in enumerate(stacked) for key in group}
    parts = [store.split(saes.training.calibration_share) for store in stores]
    rows = {i: calibration_rows(stores[i], seed, parts[i][1]) for i in {key.store for key in keys}}
    stores = [trained_on for trained_on, _ in parts]
    passes = itertools.count(1)

    def trained(of: Sequence[tuple[Key, config.SparseAutoencoder]]) -> list[TrainedSAE]:
        # The same first weights for all variants of a seed, so that they differ by their objective alone.
        members = [
            Member(
                f"{key.variant}-s{key.seed}, store {key.store}"
                + (f", penalty {spec.penalty:.4g}" if is_searched(saes.variants[key.variant]) else ""),
                spec,
                child_seed(seed, "sae", key.seed),
                key.store,
                group_of[key],
            )
            for key, spec in of
        ]
        # A file for each pass: to repeat one must not overwrite the state of the pass in progress.
        state = checkpoint and checkpoint.with_name(f"{checkpoint.name}-{next(passes)}")
        return train(stores, members, saes.training, seed=seed, device=device, splice=splice, checkpoint=state)

    def adjusted(result: TrainedSAE, key: Key, target_l0: float | None) -> TrainedSAE:
        # TopK meets its k by construction; a given penalty sets no target.
        if target_l0 is None or isinstance(result.sae, TopK):
            return result
        return replace(result, sae=adjust_threshold(result.sae.to(device), rows[key.store], target_l0).to("cpu"))

    given = [key for key in keys if not is_searched(saes.variants[key.variant])]
    if given:
        for key, result in zip(given, trained([(key, saes.variants[key.variant]) for key in given]), strict=True):
            yield key, adjusted(result, key, getattr(saes.variants[key.variant], "k", None))

    def at(asked: list[tuple[Key, float]]) -> list[TrainedSAE]:
        return trained(
            [(key, saes.variants[key.variant].model_copy(update={"penalty": p, "target_l0": None})) for key, p in asked]
        )

    goals = {key: _goal(saes.variants[key.variant], stores[key.store].shape[1]) for key in keys if key not in given}
    # Other networks and seeds start from the first of their variant in their stack: another stack may be elsewhere.
    first = {(group_of[key], key.variant): key for key in reversed(goals)}
    like = {key: leader for key in goals if (leader := first[group_of[key], key.variant]) != key}
    reached = calibrate_many(at, lambda r: mean_l0(r.sae.to(device), rows[r.member.store]), goals, like=like)
    for key, found in reached.items():
        yield key, adjusted(found.trained, key, goals[key].target_l0)
    # An earlier fit with other settings may have ended in a pass that this one does not come to.
    for left in checkpoint.parent.glob(f"{checkpoint.name}-*") if checkpoint else ():
        left.unlink()


def calibration_rows(store: Any, seed: int, aside: Int[Tensor, " n_aside"] | None = None) -> Float[Tensor, "n d_in"]:
    """Rows on which L0 is counted: all of a few, a fixed sample of many.

    Arguments:
        aside: numbers of rows that no SAE is trained on; L0 is counted on these alone, if there are any.
    """
    numbers = aside if aside is not None and len(aside) else torch.arange(store.shape[0])
    if len(numbers) > _CALIBRATION_ROWS:
        generator = torch.Generator().manual_seed(child_seed(seed, "calibration rows"))
        numbers = numbers[torch.randint(len(numbers), (_CALIBRATION_ROWS,), generator=generator).sort().values]
    return store.rows(numbers)


def mean_l0(sae: SparseAutoencoder, rows: Float[Tensor, "n d_in"]) -> float:
    """Mean number of active latents per row."""
    counted = Sparsity()
    counted.update(sae.encode_sparse(rows))
    return counted.metrics()["l0"]


def _goal(spec: config.Penalised, d_in: int) -> Goal:
    low, high, power = _GRID[type(spec)]
    grid = penalty_grid(low * d_in**power, high * d_in**power, _GRID_POINTS)
    # The thresholds of a ReLU SAE start at 0 and can only rise.
    return Goal(spec.target_l0, grid, from_above=isinstance(spec, config.ReLU))


def curves(result: TrainedSAE) -> Iterator[dict[str, Any]]:
    """One row per recorded step of an SAE."""
    for values in zip(*result.curves.values(), strict=True):
        yield dict(zip(result.curves, values, strict=True))
