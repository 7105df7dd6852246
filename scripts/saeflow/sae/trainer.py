"""Train many SAEs from one pass over their activations, in one process."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saeflow.config.saes import Penalised, Training
from saeflow.reproduce import child_seed
from saeflow.sae.architectures import SparseAutoencoder
from saeflow.sae.initialization import Normalization, NotFiniteError
from saeflow.sae.precision import matrix_products
from saeflow.sae.sharing import stacks
from saeflow.sae.stack import Member, Splice, Stack

log = logging.getLogger(__name__)

_CURVE_POINTS = 200
_LOG_LINES = 10


@dataclass(frozen=True)
class TrainedSAE:
    """What training makes of a member.

    Arguments:
        member: what was asked for.
        sae: on the CPU, in the store's own units; not finite if the training diverged (`saeflow.sae.health`).
        curves: `step` and, at these steps, loss, reconstruction (mean |x - x_hat|^2), explained_variance, l0 and
            dead_share, in units of the normalised activations.
    """

    member: Member
    sae: SparseAutoencoder
    curves: dict[str, list[float]]


def train(
    stores: Any,
    members: Sequence[Member],
    training: Training,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    splice: Splice | None = None,
    checkpoint: Path | None = None,
) -> list[TrainedSAE]:
    """Train SAEs on one store or several, all of them on the same batches of their store.

    What a member becomes does not depend on the others but for rounding, because its draws come from its own seed; and
    with `Member.group` not on those of other groups at all.

    Arguments:
        stores: an activation store, or several that `Member.store` counts; each has `shape`, `rows(indices)` and
            `batches(batch_size, seed, steps=..., epochs=..., shuffle=..., device=...)`.
        members: the SAEs; of any variants and sizes.
        training: what all of them share.
        seed: of the order of the activations.
        splice: loss of the model's output, for members with `splice_kl`.
        checkpoint: file that holds the state every `training.checkpoint_steps`. One that is there already, of the same
            training, is taken up: the result has the same bytes as without the interruption. Removed at the end.
    Returns:
        one trained SAE per member, in their order. Training ends early where all have diverged.
    Raises:
        ValueError: a member that cannot be trained as asked, which it names, a precision that is not to be had, or
            activations that are not finite, whose row it names.
    """
    stores = list(stores) if isinstance(stores, list | tuple) else [stores]
    _check(members, stores, splice)
    with torch.no_grad(), matrix_products(training.precision, device):
        used = sorted({member.store for member in members})
        normalizations = {i: _normalization(stores[i], training) for i in used}
        on_device = {i: normalizations[i].to(device) for i in used}
        groups = plan(members, stores, training, device)
        stacked = [
            Stack([members[i] for i in group], stores, normalizations, training, device=device, splice=splice)
            for group in groups
        ]
        log.info(
            "%d SAEs in %d stacks, %d steps of %d", len(members), len(stacked), training.steps, training.batch_size
        )
        streams = {
            i: stores[i].batches(
                training.batch_size,
                child_seed(seed, "batches"),
                steps=training.steps,
                shuffle="chunks",
                device=device,
            )
            for i in used
        }
        identity = _identity(members, training, streams)
        first = _resume(checkpoint, stacked, streams, identity)
        curve_steps = max(1, training.steps // _CURVE_POINTS)
        log_steps = max(1, training.steps // _LOG_LINES)
        for step in range(first, training.steps):
            batches = {i: on_device[i](next(streams[i])) for i in used}
            last = step + 1 == training.steps
            for stack in stacked:
                stack.step(_input(stack, batches), step, record=step % curve_steps == 0 or last)
            if checkpoint and training.checkpoint_steps and (step + 1) % training.checkpoint_steps == 0 and not last:
                _save(checkpoint, step + 1, stacked, streams, identity)
            if (step + 1) % log_steps == 0 or last:
                _log_progress(step + 1, stacked)
                if all(stack.diverged for stack in stacked):
                    log.warning("step %d: no loss is finite any more", step + 1)
                    break
        results = {
            i: TrainedSAE(members[i], stack.sae(j), stack.curves(j))
            for group, stack in zip(groups, stacked, strict=True)
            for j, i in enumerate(group)
        }
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return [results[i] for i in range(len(members))]


def plan(
    members: Sequence[Member], stores: Sequence[Any], training: Training, device: torch.device | str
) -> list[list[int]]:
    """Which members are stacked: those of one group, variant and size, as many at a time as pays."""
    alike = [(member.group, stores[member.store].shape[1]) for member in members]
    return stacks([m.spec for m in members], alike, training.batch_size, torch.device(device).type)


def _check(members: Sequence[Member], stores: Sequence[Any], splice: Splice | None) -> None:
    if not members:
        raise ValueError("members: none to train")
    for member in members:
        spec = member.spec
        if not 0 <= member.store < len(stores):
            raise ValueError(f"{member.name}: store {member.store}, but there are {len(stores)}, counted from 0")
        if isinstance(spec, Penalised) and spec.penalty is None:
            raise ValueError(f"{member.name}: penalty is not set; calibrate it to target_l0 {spec.target_l0:g} first")
        if spec.splice_kl and splice is None:
            raise ValueError(f"{member.name}: splice_kl is {spec.splice_kl:g}, which needs a `splice` function")


def _normalization(store: Any, training: Training) -> Normalization:
    rows = max(training.batch_size, (1 << 22) // store.shape[1])
    try:
        return Normalization.of(store.batches(rows, 0, epochs=1, shuffle=None), training.normalize)
    except NotFiniteError as error:
        raise ValueError(f"{store.place(error.row)} holds a value that is not finite; capture the store anew") from None


def _input(stack: Stack, batches: dict[int, Tensor]) -> Tensor:
    """Batch of each member [m, b, d_in]; a view if all are on one store."""
    sources = [member.store for member in stack.members]
    if len(set(sources)) == 1:
        return batches[sources[0]].expand(len(sources), -1, -1)
    return torch.stack([batches[i] for i in sources])


def _log_progress(step: int, stacks: Sequence[Stack]) -> None:
    """A line per stack, of means over its members."""
    for stack in stacks:
        means = dict(zip(stack.COLUMNS, stack.records[-1][1].mean(1).tolist(), strict=True))
        log.info(
            "step %d, %d x %s, d_sae %d: loss %.4g l0 %.4g ev %.4f dead %.1f %%",
            step,
            len(stack.members),
            stack.specs[0].architecture,
            stack.objective.d_sae,
            means["loss"],
            means["l0"],
            means["explained_variance"],
            100 * means["dead_share"],
        )


def _identity(members: Sequence[Member], training: Training, streams: dict[int, Any]) -> dict[str, Any]:
    """What a checkpoint must agree with; where it is saved is no part of the result."""
    return {
        "members": [[m.name, m.spec.model_dump(mode="json"), m.seed, m.store] for m in members],
        "training": training.model_dump(mode="json", exclude={"checkpoint_steps"}),
        # Whose rows in which order: asked for before the first step, when every stream is at its beginning.
        "streams": {str(i): stream.state_dict() for i, stream in streams.items()},
    }


def _save(path: Path, step: int, stacks: Sequence[Stack], streams: dict[int, Any], identity: dict[str, Any]) -> None:
    """Write everything that is needed to go on from `step`; the file is either whole or the one before."""
    tensors, numbers = {}, []
    for i, stack in enumerate(stacks):
        own, number = stack.state()
        tensors |= {f"{i}.{name}": tensor.contiguous() for name, tensor in own.items()}
        numbers.append(number)
    state = {
        "step": step,
        "stacks": numbers,
        "streams": {str(i): stream.state_dict() for i, stream in streams.items()},
        "identity": identity,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, {"state": json.dumps(state, sort_keys=True)})
    os.replace(partial, path)


def _resume(path: Path | None, stacks: Sequence[Stack], streams: dict[int, Any], identity: dict[str, Any]) -> int:
    """Steps that are done already: those of the checkpoint, if it is one of this training."""
    if path is None or not path.is_file():
        return 0
    state = _state(path)
    if state is None:
        return 0
    if state["identity"] != json.loads(json.dumps(identity)):
        log.warning("%s: from a training with other settings; starting over", path)
        return 0
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        for i, (stack, numbers) in enumerate(zip(stacks, state["stacks"], strict=True)):
            prefix = f"{i}."
            tensors: Iterator = ((n.removeprefix(prefix), file.get_tensor(n)) for n in names if n.startswith(prefix))
            stack.load_state(dict(tensors), numbers)
    for i, stream in streams.items():
        stream.load_state_dict(state["streams"][str(i)])
    log.info("%s: going on after step %d", path, state["step"])
    return state["step"]


def _state(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says beside its tensors; none of a file that is damaged, which costs steps but no result."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: truncated or no checkpoint (%s); starting over", path, error)
        return None
