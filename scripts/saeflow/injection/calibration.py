"""The shift of a concept's logit that leaves a given share of the target's own images without the concept."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def calibrated_shifts(
    logits: Float[Tensor, "m n classes"],
    concepts: Sequence[int],
    keep: float,
    largest: float = math.inf,
) -> dict[int, Float[Tensor, " m"]]:
    """b_c: quantile 1 - keep of max_{j not a concept} l_j - l_c, over the images.

    With b_c added to logit c, at least the share `keep` is not answered with a concept. b_c lies halfway between the
    largest margin that may be lost and the smallest that is kept. Several concepts share 1 - keep equally. Images count
    whether they are answered right or not, so that a target which answers at random is calibrated alike.

    Arguments:
        logits: of calibration images of the target's own classes.
        concepts: classes that were injected.
        keep: share of the images.
        largest: bound on the shift, for a score that has a natural threshold and need not use up the loss.
    Returns:
        shift per member, by concept.
    """
    rivals = logits.clone()
    rivals[..., list(concepts)] = -torch.inf
    best = rivals.max(-1).values
    # 1 - 0.9 is a little less than 0.1.
    allowed = min(int((1 - keep) / len(concepts) * logits.shape[1] + 1e-6), logits.shape[1] - 1)
    shifts = {}
    for concept in concepts:
        margins = (best - logits[..., concept]).double().sort(-1).values
        below = margins[:, allowed - 1] if allowed else margins[:, 0] - 2
        shifts[concept] = ((margins[:, allowed] + below) / 2).to(logits).clamp(max=largest)
    return shifts


def shifted(logits: Float[Tensor, "m n classes"], shifts: Mapping[int, Float[Tensor, " m"]]) -> Tensor:
    """Logits with each concept's shift added."""
    changed = logits.clone()
    for label, shift in shifts.items():
        changed[..., label] += shift[:, None]
    return changed
