"""The shift of a concept's logit that keeps a given share of the target's right answers."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def calibrated_shifts(
    logits: Float[Tensor, "m n classes"],
    labels: Int[Tensor, " n"],
    concepts: Sequence[int],
    keep: float,
    largest: float = math.inf,
) -> dict[int, Float[Tensor, " m"]]:
    """b_c: quantile 1 - keep of max_{j not a concept} l_j - l_c, over the images answered right without concepts.

    b_c lies halfway between the largest margin that may be lost and the smallest that is kept. Several concepts share
    the allowed loss 1 - keep equally.

    Arguments:
        logits: of calibration images, of the target's own classes.
        labels: theirs.
        concepts: classes that were injected.
        keep: share of the right answers that remain.
        largest: bound on the shift, for a score that has a natural threshold and need not use up the loss.
    Returns:
        shift per member, by concept; 0 where a member answers nothing right.
    """
    rivals = logits.clone()
    rivals[..., list(concepts)] = -torch.inf
    best, answers = rivals.max(-1)
    lost = (1 - keep) / len(concepts)
    shifts = {}
    for concept in concepts:
        shift = logits.new_zeros(len(logits))
        for i in range(len(logits)):
            margins = (best[i] - logits[i, :, concept])[answers[i] == labels].double().sort().values
            if len(margins):
                # At most `allowed` margins may end below zero.
                allowed = min(int(lost * len(margins)), len(margins) - 1)
                below = margins[allowed - 1] if allowed else margins[0] - 2
                shift[i] = (margins[allowed] + below) / 2
        shifts[concept] = shift.clamp(max=largest)
    return shifts


def shifted(logits: Float[Tensor, "m n classes"], shifts: Mapping[int, Float[Tensor, " m"]]) -> Tensor:
    """Logits with each concept's shift added."""
    changed = logits.clone()
    for label, shift in shifts.items():
        changed[..., label] += shift[:, None]
    return changed
