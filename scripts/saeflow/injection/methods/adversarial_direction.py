"""Method 7: a score that is trained against the worst perturbation of every row, and against look-alikes."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow import config
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.densities import shrunk
from saeflow.injection.knowledge import T1_PLUS, T2, B
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.models.adamw import AdamW
from saeflow.models.classifiers import StackedClassifier

_PIXEL_NOISE = 0.2
_NOISY_IMAGES = 2048
_UNITS = 48
_STEPS = 80
_ROWS = 64
_LEARNING_RATE = 1e-2
# The concept's logit is this many times the trained log odds: the answer then leans a tenth on the target's doubt.
_SCALE = 10.0


class Rows(NamedTuple):
    """Rows in the target's space, whitened by its own classes, and factors L of covariances L' L of their errors."""

    concept: Float[Tensor, "m a d"]
    lookalike: Float[Tensor, "m b d"]
    own: Float[Tensor, "m c d"]
    left_out: Float[Tensor, "m d d"]
    """Of what the map leaves out."""
    perturbation: Float[Tensor, "m d d"]
    """Of the changes that noise on the pixels causes."""


@register
@dataclass(frozen=True, kw_only=True)
class AdversarialDirection(Method):
    """min_s E max_{d' C^-1 d <= radius^2} softplus(-y s(h + d));  y = 1 for the concept's carried rows, else -1.

    C is the covariance of the changes of h under pixel noise, so the ball holds what perturbed inputs can do. The inner
    maximum, over rows of own classes and of the look-alike too, is taken to first order: d = radius C g / sqrt(g' C g)
    with g the loss's gradient (Goodfellow et al. 2015, section 4; the minimax: Madry et al. 2018, eq. 2.1). s has one
    hidden layer; carried rows are drawn anew at each step with noise of the map's residual.

    Arguments:
        radius: 0 trains without perturbations.
    """

    name = "adversarial_direction"
    family = "sae"
    radius: float = 1.0

    @property
    def controls(self) -> tuple[str, ...]:
        """None for what shows the share of the perturbations."""
        return ("untrained_target",) if self.radius else ()

    @classmethod
    def variants(cls, settings: config.Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1_PLUS | B, site=SITE, variant="not adversarial", radius=0.0),
            cls(knowledge=T2 | B, site=SITE, variant="doodles"),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        task = guard.task
        seen = Seen.of(source, target, guard, self.knowledge)
        space = AlignedSpace.ridge(seen)
        rows = guard.source_activations(SITE)
        own = guard.activations(target, seen.images.images, SITE)
        mean, whitening, changes = guard.once(target, "whitening", lambda: self._whitening(target, own, seen, guard))
        carried = [space.to(rows_of(*rows, label)) for label in (task.concept, task.lookalike)]
        whitened = ((values - mean[:, None]) @ whitening for values in (*carried, own))
        left_out = _power(space.noise, 0.5) @ whitening
        (weight, bias), *later = self._train(Rows(*whitened, left_out, changes), guard)
        # The whitening goes into the first layer.
        first = whitening @ weight, bias - (mean[:, None] @ whitening @ weight)[:, 0]
        last_weight, last_bias = later[-1]
        layers = [first, *later[:-1], (_SCALE * last_weight, _SCALE * last_bias)]
        return Grafted(target, self.site, {task.concept: Head(*layers)})

    def _whitening(
        self, target: StackedClassifier, own: Float[Tensor, "m n d"], seen: Seen, guard: Guard
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d d"], Float[Tensor, "m d d"]]:
        """Mean of the target's own values, what whitens them by their classes, and a factor of the whitened changes."""
        average = torch.stack([gaussian.covariance for gaussian in seen.own_classes.gaussians]).mean(0)
        whitening = _power(average, -0.5)
        return own.mean(1), whitening, _power(self._pixel_noise(target, guard), 0.5) @ whitening

    def _pixel_noise(self, target: StackedClassifier, guard: Guard) -> Float[Tensor, "m d d"]:
        """Covariance of the changes of the target's values under pixel noise."""
        images = guard.own().images
        generator = guard.generator("pixel noise")
        some = images[torch.randperm(len(images), generator=generator)[:_NOISY_IMAGES].to(images.device)]
        noise = _PIXEL_NOISE * torch.randn(some.shape, generator=generator).to(some)
        change = guard.activations(target, (some + noise).clamp(0, 1), SITE) - guard.activations(target, some, SITE)
        return shrunk(change.mT @ change / len(some), len(some))

    def _train(self, rows: Rows, guard: Guard) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer of s."""
        m, _, d = rows.own.shape
        generator = guard.generator("training")
        layers = [
            (
                (2 / i) ** 0.5 * torch.randn(i, o, generator=generator).to(rows.own).repeat(m, 1, 1),
                rows.own.new_zeros(m, o),
            )
            for i, o in itertools.pairwise((d, _UNITS, 1))
        ]
        optimizer = AdamW([parameter for layer in layers for parameter in layer], 0.0)
        for step, (h, noise) in enumerate(_batches(rows, generator)):
            learning_rate = _LEARNING_RATE / 2 * (1 + math.cos(math.pi * step / _STEPS))
            optimizer.step(gradients(h, noise, layers, rows, self.radius), learning_rate)
        return layers


def _batches(rows: Rows, generator: torch.Generator) -> Iterator[tuple[Float[Tensor, "m n d"], Float[Tensor, "c d"]]]:
    """Concept, look-alike and twice as many own rows; and what is drawn for the first half, which is carried."""
    for _ in range(_STEPS):
        h = [
            values.index_select(1, torch.randint(values.shape[1], (n,), generator=generator).to(values.device))
            for values, n in ((rows.concept, _ROWS), (rows.lookalike, _ROWS), (rows.own, 2 * _ROWS))
        ]
        yield torch.cat(h, 1), torch.randn(2 * _ROWS, rows.own.shape[-1], generator=generator).to(rows.own)


def gradients(
    h: Float[Tensor, "m n d"],
    noise: Float[Tensor, "c d"],
    layers: list[tuple[Tensor, Tensor]],
    rows: Rows,
    radius: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the loss, for the weight and bias of either layer.

    Noise L and perturbations enter s through its first weight W alone, and a perturbation is a combination a (F W)' F
    of F's rows: with L W and F W at hand no product of rows with a d x d matrix is left.

    Arguments:
        h: rows; a quarter are the concept's, the first half carried.
        noise: standard normal, of the carried rows.
        radius: 0 leaves perturbations out.
    """
    (weight, bias), (last, last_bias) = layers
    carried = noise.shape[0]
    sign = torch.where(torch.arange(h.shape[1], device=h.device) < h.shape[1] // 4, 1.0, -1.0)
    units = torch.baddbmm(bias[:, None], h, weight)
    units[:, :carried] += noise @ (rows.left_out @ weight)
    if radius:
        factor = rows.perturbation @ weight
        gram = factor.mT @ factor
        # By signs: a product with booleans costs a CPU five times as much.
        worst = units.relu().sign_().mul_(last.mT)
        change = worst @ gram
        length = (change * worst).sum(-1, keepdim=True).clamp_(min=torch.finfo(h.dtype).tiny).sqrt_()
        share = length.reciprocal_().mul_(radius).mul_(-sign[:, None])
        worst *= share
        units.addcmul_(change, share)
    # One row each, in front: a product with one column behind costs as much as one with all of them.
    relu = units.relu_()
    s = torch.baddbmm(last_bias[:, None], last.mT, relu.mT)
    of_score = -sign * torch.sigmoid(-sign * s) / h.shape[1]
    of_last = (of_score @ relu).mT
    of_units = relu.sign_().mul_(last.mT).mul_(of_score.mT)
    of_weight = h.mT @ of_units + rows.left_out.mT @ (noise.mT @ of_units[:, :carried])
    if radius:
        of_weight += rows.perturbation.mT @ (factor @ (worst.mT @ of_units))
    return of_weight, of_units.sum(1), of_last, of_score.sum(2)


def _power(covariance: Float[Tensor, "m d d"], exponent: float) -> Float[Tensor, "m d d"]:
    """Symmetric power, eigenvalues floored at 1e-6 of the largest."""
    values, vectors = torch.linalg.eigh(covariance.double())
    floored = values.clamp(min=1e-6 * values[:, -1:])
    return ((vectors * floored[:, None] ** exponent) @ vectors.mT).to(covariance)
