"""The target's activation space, with what a source knows carried into it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.injection.alignment import Map, residual_covariance, ridge
from saeflow.injection.densities import Gaussian
from saeflow.injection.knowledge import Knowledge
from saeflow.injection.protocol import Guard, Labelled
from saeflow.models.classifiers import StackedClassifier

SITE = "last.pre"
"""Hook point that both networks are read at."""

Learn = Callable[[Tensor, Tensor], Map]
"""From values [m, n, p] and [m, n, q] of the same images to a map from one to the other."""


@dataclass(frozen=True)
class Seen:
    """Values of both networks on images that both run on.

    Arguments:
        source, target: values at `SITE`, of images with labels first.
        images: those images.
    """

    source: Float[Tensor, "m n p"]
    target: Float[Tensor, "m n q"]
    images: Labelled

    @classmethod
    def of(cls, source: StackedClassifier, target: StackedClassifier, guard: Guard, knowledge: Knowledge) -> Self:
        """Images of the target's own classes, or of the shared ones, and synthetic ones, as far as `knowledge` goes."""
        images = guard.own() if Knowledge.OWN in knowledge else guard.shared()
        sets = [images.images, *([guard.synthetic()] if Knowledge.SYNTHETIC in knowledge else [])]
        values = (torch.cat([guard.activations(n, some, SITE) for some in sets], 1) for n in (source, target))
        return cls(*values, images)

    def own_classes(self) -> list[Gaussian]:
        """The target's classes among the labelled images, in the order of their labels."""
        labels = self.images.labels
        labelled = self.target[:, : len(labels)]
        return [Gaussian.of(labelled[:, labels == label]) for label in labels.unique().tolist()]


@dataclass(frozen=True)
class AlignedSpace:
    """g: source space -> target space, and the covariance of h_A - g(h_B) on images that both see.

    Arguments:
        to: g.
        noise: what g leaves out.
    """

    to: Map
    noise: Float[Tensor, "m q q"]

    @classmethod
    def learned(cls, source: Float[Tensor, "m n p"], target: Float[Tensor, "m n q"], learn: Learn = ridge) -> Self:
        """The map that `learn` makes of both networks' values on the same images."""
        to = learn(source, target)
        return cls(to, residual_covariance(to, source, target))

    def carried(self, rows: Float[Tensor, "m n p"]) -> Gaussian:
        """N(mean g(rows), cov g(rows) + noise): a class in the target's space, from the source's rows of it."""
        return Gaussian.of(self.to(rows), self.noise)


def rows_of(values: Float[Tensor, "m n p"], labels: Int[Tensor, " n"], *classes: int) -> Float[Tensor, "m some p"]:
    """Rows of some classes."""
    return values[:, torch.isin(labels, torch.tensor(classes, device=labels.device))]
