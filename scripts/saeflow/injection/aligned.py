"""The target's activation space, with what a source knows carried into it."""

from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.injection.alignment import Map, Sample, fitted, residual_covariance
from saeflow.injection.densities import Gaussian, OwnClasses
from saeflow.injection.knowledge import Knowledge
from saeflow.injection.materials import Labelled
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

SITE = "last.pre"
"""Hook point that both networks are read at."""


@dataclass(frozen=True)
class Seen:
    """What both networks make of images that both run on.

    Arguments:
        source, target: at `SITE`, of images with labels first.
        images: those images.
        own_classes: the target's classes among the labelled images, in the order of their labels.
    """

    source: Sample
    target: Sample
    images: Labelled
    own_classes: OwnClasses

    @classmethod
    def of(cls, source: StackedClassifier, target: StackedClassifier, guard: Guard, knowledge: Knowledge) -> Self:
        """Images of the target's own classes, or of the shared ones, and synthetic ones, as far as `knowledge` goes."""
        images = guard.own() if Knowledge.OWN in knowledge else guard.shared()
        sets = [images.images, *([guard.synthetic()] if Knowledge.SYNTHETIC in knowledge else [])]

        def sample(network: StackedClassifier) -> Sample:
            return Sample(lambda: (guard.activations(network, some, SITE) for some in sets))

        def own_classes() -> OwnClasses:
            labelled, labels = guard.activations(target, images.images, SITE), images.labels
            return OwnClasses([Gaussian.of(labelled[:, labels == label]) for label in labels.unique().tolist()])

        samples = (guard.once(network, "sample", partial(sample, network)) for network in (source, target))
        return cls(*samples, images, guard.once(target, "own classes", own_classes))


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
    def ridge(cls, seen: Seen) -> Self:
        """The affine map of ridge regression."""
        return cls(*fitted(seen.source, seen.target))

    @classmethod
    def of(cls, to: Map, source: Float[Tensor, "m n p"], target: Float[Tensor, "m n q"]) -> Self:
        """Any map, and what it leaves out of these values."""
        return cls(to, residual_covariance(to, source, target))

    def carried(self, rows: Float[Tensor, "m n p"]) -> Gaussian:
        """N(mean g(rows), cov g(rows) + noise): a class in the target's space, from the source's rows of it."""
        return Gaussian.of(self.to(rows), self.noise)


def rows_of(values: Float[Tensor, "m n p"], labels: Int[Tensor, " n"], *classes: int) -> Float[Tensor, "m some p"]:
    """Rows of some classes."""
    return values[:, torch.isin(labels, torch.tensor(classes, device=labels.device))]
