"""Linear readouts of a concept's direction in activation space."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

RIDGE = 0.1
"""Added to a covariance, in units of its mean variance."""
_EPS = 1e-6


def class_means(
    rows: Float[Tensor, "m n d"], labels: Int[Tensor, " n"], classes: Sequence[int]
) -> Float[Tensor, "m classes d"]:
    """Mean of each class's rows."""
    return torch.stack([rows[:, labels == label].mean(1) for label in classes], dim=1)


def discriminant(
    direction: Float[Tensor, "m d"], rows: Float[Tensor, "m n d"], ridge: float = RIDGE
) -> Float[Tensor, "m d"]:
    """w = (C + ridge tr(C)/d I)^-1 v, C the covariance of the rows: Fisher's readout of a direction v."""
    centered = rows - rows.mean(1, keepdim=True)
    covariance = (centered.mT @ centered / rows.shape[1]).double()
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    diagonal.add_(ridge * diagonal.mean(1, keepdim=True))
    return torch.linalg.solve(covariance, direction.double()).to(direction)


def in_logit_units(
    score: Float[Tensor, "m n"], target: StackedClassifier, images: Float[Tensor, "n 1 h w"], guard: Guard
) -> Float[Tensor, " m"]:
    """Factor that gives a score the spread of the target's best own logit over the same images."""
    own = guard.activations(target, images, "logits")[..., list(guard.task.target_classes)].amax(-1)
    return own.std(1) / score.std(1).clamp(min=_EPS)
