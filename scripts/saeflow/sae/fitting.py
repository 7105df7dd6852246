"""Every SAE of a study on its stores: penalties calibrated to a target L0, all trained, thresholds adjusted."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.config.saes import Gated, JumpReLU, Penalised, ReLU, SAEs, Training, Variant
from saeflow.reproduce import child_seed
from saeflow.sae import health
from saeflow.sae.architectures import SparseAutoencoder, TopK
from saeflow.sae.calibration import CalibrationError, Goal, adjust_threshold, calibrate_many, penalty_grid
from saeflow.sae.finished import Finished
from saeflow.sae.metrics import Sparsity
from saeflow.sae.sharing import Key, groups, is_searched, keys_of
from saeflow.sae.stack import Member, Splice
from saeflow.sae.trainer import TrainedSAE, train

log = logging.getLogger(__name__)

# Where the search for a penalty starts. Activations have mean squared norm d_in: an L1 penalty weighs against
# sqrt(d_in), an L0 penalty against d_in. Measured on 32- to 256-wide layers, these give L0 from about 40 down to 3.
_GRID = {ReLU: (0.02, 1.0, 0.5), Gated: (0.02, 1.0, 0.5), JumpReLU: (5e-4, 5e-2, 1.0)}
_GRID_POINTS = 4
_CALIBRATION_ROWS = 1 << 17


class FittingError(ValueError):
    """SAEs that could not be made; names each, what is wrong with it, and where the others are."""


def fit(
    stores: Sequence[Any],
    saes: SAEs,
    *,
    seed: int,
    keys: Sequence[Key] | None = None,
    device: torch.device | str = "cpu",
    splice: Splice | None = None,
    checkpoint: Path | None = None,
    check: Callable[[TrainedSAE, Training], TrainedSAE] | None = None,
    finished: Mapping[Key, Path] | None = None,
) -> Iterator[tuple[Key, TrainedSAE]]:
    """Train every variant and seed on every store, or some of them.

    SAEs whose sparsity is given are trained together, in one pass over each store. Those with a `target_l0` are
    calibrated together, each round of the search being one pass. Every SAE but TopK then has its thresholds shifted, on
    calibration rows, to its target L0, or to 0 where fewer latents than its k can be active; the threshold of one with
    a given penalty stays as it was trained.

    An SAE that diverged, misses its target or does not pass `check` is told of when all others are done.

    Arguments:
        stores: activation stores of one width, as `saeflow.sae.trainer.train` takes them.
        saes: variants, seeds and training.
        seed: root of all draws.
        keys: SAEs to train, if not all: whole groups of `saeflow.sae.sharing.groups`, for the bytes of one job for all.
        splice: loss of the model's output, for variants with `splice_kl`.
        checkpoint: file that holds, with the pass's number behind its name, the state of a pass, as `train` takes it;
            an interrupted fit repeats the passes before the one in progress and goes on inside that.
        check: raises a ValueError for an SAE that is not to be used.
        finished: folder for each SAE, where it is kept until all SAEs are done. A later fit takes up from there the
            groups that are whole and asked for in the same way.
    Returns:
        SAEs as they are done, in no particular order.
    Raises:
        FittingError: SAEs that diverged, whose target L0 no penalty reaches, or that did not pass the check.
    """

    keys = keys_of(saes, len(stores)) if keys is None else list(keys)
    stacked = groups(saes, len(stores), torch.device(device).type)
    group_of = {key: i for i, group in enumerate(stacked) for key in group}
    parts = [store.split(saes.training.calibration_share) for store in stores]
    kept = Finished(finished or {}, [store.identity for store in stores] if finished else [], saes, seed, device)
    passes = itertools.count(1)
    failures: dict[Key, ValueError] = {}
    tried: dict[Key, list[TrainedSAE]] = {}
    before: dict[Key, TrainedSAE] = {}
    for i in dict.fromkeys(group_of[key] for key in keys):
        before |= kept.take(stacked[i])
    yield from before.items()
    todo = [key for key in keys if key not in before]
    rows = {i: calibration_rows(stores[i], seed, parts[i][1]) for i in {key.store for key in todo}}
    stores = [trained_on for trained_on, _ in parts]

    def trained(of: Sequence[tuple[Key, Variant]]) -> list[TrainedSAE]:
        # The same first weights for all variants of a seed, so that they differ by their objective alone.
        members = [
            Member(
                f"{key}" + (f", penalty {spec.penalty:.4g}" if is_searched(saes.variants[key.variant]) else ""),
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

    def made(key: Key, result: TrainedSAE, target_l0: float | None) -> dict[Key, TrainedSAE]:
        """The SAE as it is used; nothing, if it cannot be."""
        searched = is_searched(saes.variants[key.variant])
        try:
            result = health.check_finite(result, saes.training, searched=searched)
            if check is not None:
                result = check(result, saes.training)
            # TopK meets its k by construction; a given penalty sets no target.
            if target_l0 is not None and not isinstance(result.sae, TopK):
                sae = adjust_threshold(result.sae.to(device), rows[key.store], target_l0, at_most=not searched)
                result = replace(result, sae=sae.to("cpu"))
        except CalibrationError as error:
            failures[key] = health.missed(CalibrationError(f"{result.member.name}: {error}"), [result], saes.training)
        except ValueError as error:
            failures[key] = error
        else:
            kept.keep(key, stacked[group_of[key]], result)
            return {key: result}
        return {}

    given = [key for key in keys if not is_searched(saes.variants[key.variant])]
    if any(key in todo for key in given):
        given = [key for key in given if key in todo]
        for key, result in zip(given, trained([(key, saes.variants[key.variant]) for key in given]), strict=True):
            yield from made(key, result, getattr(saes.variants[key.variant], "k", None)).items()
    elif given:
        # The passes of the search keep their numbers.
        next(passes)

    def at(asked: list[tuple[Key, float]]) -> list[TrainedSAE]:
        specs = [saes.variants[key.variant].model_copy(update={"penalty": p, "target_l0": None}) for key, p in asked]
        results = trained([(key, spec) for (key, _), spec in zip(asked, specs, strict=True)])
        for (key, _), result in zip(asked, results, strict=True):
            tried.setdefault(key, []).append(result)
        return results

    def missed(key: Key, error: CalibrationError) -> None:
        failures[key] = health.missed(error, tried[key], saes.training)

    def l0_of(result: TrainedSAE) -> float:
        return mean_l0(result.sae.to(device), rows[result.member.store]) if health.is_finite(result) else math.nan

    searched = [key for key in todo if is_searched(saes.variants[key.variant])]
    goals = {key: _goal(saes.variants[key.variant], stores[key.store].shape[1]) for key in searched}
    # Other networks and seeds start from the first of their variant in their stack: another stack may be elsewhere.
    first = {(group_of[key], key.variant): key for key in reversed(goals)}
    like = {key: leader for key in goals if (leader := first[group_of[key], key.variant]) != key}
    reached = calibrate_many(at, l0_of, goals, like=like, failed=missed)
    for key, found in reached.items():
        yield from made(key, found.trained, goals[key].target_l0).items()
    # An earlier fit with other settings may have ended in a pass that this one does not come to.
    for left in checkpoint.parent.glob(f"{checkpoint.name}-*") if checkpoint else ():
        left.unlink()
    if failures:
        lines = [str(error) for error in failures.values()]
        if finished and (done := [key for key in keys if key not in failures]):
            lines.append(
                f"{len(done)} other SAEs are done and kept ({finished[done[0]]}, ...); those whose architecture and "
                "d_sae are none that you change are not trained again"
            )
        raise FittingError("\n".join(lines)) from next(iter(failures.values()))
    kept.clear()


def calibration_rows(store: Any, seed: int, aside: Int[Tensor, " n_aside"] | None = None) -> Float[Tensor, "n d_in"]:
    """Rows on which L0 is counted: all of a few, a fixed sample of many.

    Arguments:
        aside: numbers of rows that no SAE is trained on; L0 is counted on these alone, if there are any.
    """
    numbers = aside if aside is not None and len(aside) else torch.arange(store.shape[0])
    if len(numbers) > _CALIBRATION_ROWS:
        generator = torch.Generator().manual_seed(child_seed(seed, "calibration rows"))
        numbers = numbers[torch.randint(len(numbers), (_CALIBRATION_ROWS,), generator=generator).sort().values]
    rows = store.rows(numbers)
    if not bool((finite := rows.isfinite().all(1)).all()):
        row = int(numbers[int((~finite).nonzero()[0])])
        raise ValueError(f"{store.place(row)} holds a value that is not finite; capture the store anew")
    return rows


def mean_l0(sae: SparseAutoencoder, rows: Float[Tensor, "n d_in"]) -> float:
    """Mean number of active latents per row."""
    counted = Sparsity()
    counted.update(sae.encode_sparse(rows))
    return counted.metrics()["l0"]


def _goal(spec: Penalised, d_in: int) -> Goal:
    low, high, power = _GRID[type(spec)]
    grid = penalty_grid(low * d_in**power, high * d_in**power, _GRID_POINTS)
    # The thresholds of a ReLU SAE start at 0 and can only rise.
    return Goal(spec.target_l0, grid, from_above=isinstance(spec, ReLU))


def curves(result: TrainedSAE) -> Iterator[dict[str, Any]]:
    """One row per recorded step of an SAE."""
    for values in zip(*result.curves.values(), strict=True):
        yield dict(zip(result.curves, values, strict=True))
