"""Method 7: a score that is trained against the worst perturbation of every row, and against look-alikes."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
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
_STEPS = 100
_ROWS = 32
_CARRIED = 1024
_LEARNING_RATE = 1e-2
# The concept's logit is this many times the trained log odds: the answer then leans a tenth on the target's doubt.
_SCALE = 10.0


class Own(NamedTuple):
    """The target's own rows, whitened by its classes."""

    mean: Float[Tensor, "m d"]
    """Of what is whitened."""
    whitening: Float[Tensor, "m d d"]
    rows: Float[Tensor, "m c d"]
    perturbation: Float[Tensor, "m d d"]
    """L with L' L the covariance of the changes that noise on the pixels causes."""

    def whitened(self, values: Float[Tensor, "m n d"]) -> Float[Tensor, "m n d"]:
        """Other rows, alike."""
        return (values - self.mean[:, None]) @ self.whitening


@register
@dataclass(frozen=True, kw_only=True)
class AdversarialDirection(Method):
    """min_s E max_{d' C^-1 d <= radius^2} softplus(-y s(h + d));  y = 1 for the concept's carried rows, else -1.

    C is the covariance of the changes of h under pixel noise, so the ball holds what perturbed inputs can do. The inner
    maximum, over rows of own classes and of the look-alike too, is taken to first order: d = radius C g / sqrt(g' C g)
    with g the loss's gradient (Goodfellow et al. 2015, section 4; the minimax: Madry et al. 2018, eq. 2.1). s has one
    hidden layer; carried rows are 1,024 of each class, drawn with noise of the map's residual.

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
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1_PLUS | B, site=SITE, variant="not adversarial", radius=0.0),
            cls(knowledge=T2 | B, site=SITE, variant="doodles"),
        ]

    @property
    def draws(self) -> str:
        """Those of the variant with perturbations, for what is compared with it."""
        return self.label if self.radius else self.name

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        seen = Seen.of(source, target, guard, self.knowledge)
        own = guard.once(target, "own", lambda: self._own(target, seen, guard))
        carried = guard.once_for_pair("carried", lambda: self._carried(seen, own, guard))
        (weight, bias), *later = self._train(carried, own, guard)
        # The whitening goes into the first layer.
        first = own.whitening @ weight, bias - (own.mean[:, None] @ own.whitening @ weight)[:, 0]
        last_weight, last_bias = later[-1]
        layers = [first, *later[:-1], (_SCALE * last_weight, _SCALE * last_bias)]
        return Grafted(target, self.site, {guard.task.concept: Head(*layers)})

    def _own(self, target: StackedClassifier, seen: Seen, guard: Guard) -> Own:
        values = guard.activations(target, seen.images.images, SITE)
        average = torch.stack([gaussian.covariance for gaussian in seen.own_classes.gaussians]).mean(0)
        mean, whitening = values.mean(1), _power(average, -0.5)
        perturbation = _power(self._pixel_noise(target, guard), 0.5) @ whitening
        return Own(mean, whitening, (values - mean[:, None]) @ whitening, perturbation)

    def _carried(self, seen: Seen, own: Own, guard: Guard) -> list[Float[Tensor, "m a d"]]:
        """Rows of the concept and of the look-alike, each with noise of what the map leaves out."""
        space, rows = AlignedSpace.ridge(seen), guard.source_activations(SITE)
        left_out, generator = _power(space.noise, 0.5) @ own.whitening, guard.generator("carried")
        with_noise = []
        for label in (guard.task.concept, guard.task.lookalike):
            carried = own.whitened(space.to(rows_of(*rows, label)))
            drawn = torch.randint(carried.shape[1], (_CARRIED,), generator=generator).to(carried.device)
            noise = torch.randn(_CARRIED, carried.shape[-1], generator=generator).to(carried)
            with_noise.append(carried.index_select(1, drawn) + noise @ left_out)
        return with_noise

    def _pixel_noise(self, target: StackedClassifier, guard: Guard) -> Float[Tensor, "m d d"]:
        """Covariance of the changes of the target's values under pixel noise."""
        images = guard.own().images
        generator = guard.generator("pixel noise")
        some = images[torch.randperm(len(images), generator=generator)[:_NOISY_IMAGES].to(images.device)]
        noise = _PIXEL_NOISE * torch.randn(some.shape, generator=generator).to(some)
        change = guard.activations(target, (some + noise).clamp(0, 1), SITE) - guard.activations(target, some, SITE)
        return shrunk(change.mT @ change / len(some), len(some))

    def _train(self, carried: Sequence[Tensor], own: Own, guard: Guard) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer of s."""
        m, _, d = own.rows.shape
        generator = guard.generator("training")
        layers = [
            (
                (2 / i) ** 0.5 * torch.randn(i, o, generator=generator).to(own.rows).repeat(m, 1, 1),
                own.rows.new_zeros(m, o),
            )
            for i, o in itertools.pairwise((d, _UNITS, 1))
        ]
        optimizer = AdamW([parameter for layer in layers for parameter in layer], 0.0)
        for step, h in enumerate(_batches((*carried, own.rows), generator)):
            learning_rate = _LEARNING_RATE / 2 * (1 + math.cos(math.pi * step / _STEPS))
            optimizer.step(gradients(h, layers, own.perturbation, self.radius), learning_rate)
        return layers


def _batches(rows: Sequence[Float[Tensor, "m _ d"]], generator: torch.Generator) -> Iterator[Float[Tensor, "m n d"]]:
    """Concept, look-alike and twice as many own rows."""
    sizes = _ROWS, _ROWS, 2 * _ROWS
    drawn = [
        torch.randint(of.shape[1], (_STEPS, n), generator=generator).to(of.device)
        for of, n in zip(rows, sizes, strict=True)
    ]
    for step in zip(*drawn, strict=True):
        yield torch.cat([of.index_select(1, some) for of, some in zip(rows, step, strict=True)], 1)


def gradients(
    h: Float[Tensor, "m n d"],
    layers: list[tuple[Tensor, Tensor]],
    perturbation: Float[Tensor, "m d d"],
    radius: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the loss, for the weight and bias of either layer.

    Perturbations enter s through its first weight W alone, and each is a combination a (F W)' F of the rows of their
    factor F: with F W at hand no product of rows with a d x d matrix is left.

    Arguments:
        h: rows; a quarter are the concept's.
        perturbation: F.
        radius: 0 leaves perturbations out.
    """
    (weight, bias), (last, last_bias) = layers
    sign = torch.where(torch.arange(h.shape[1], device=h.device) < h.shape[1] // 4, 1.0, -1.0)
    units = torch.baddbmm(bias[:, None], h, weight)
    if radius:
        factor = perturbation @ weight
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
    of_weight = h.mT @ of_units
    if radius:
        of_weight += perturbation.mT @ (factor @ (worst.mT @ of_units))
    return of_weight, of_units.sum(1), of_last, of_score.sum(2)


def _power(covariance: Float[Tensor, "m d d"], exponent: float) -> Float[Tensor, "m d d"]:
    """Symmetric power, eigenvalues floored at 1e-6 of the largest."""
    values, vectors = torch.linalg.eigh(covariance.double())
    floored = values.clamp(min=1e-6 * values[:, -1:])
    return ((vectors * floored[:, None] ** exponent) @ vectors.mT).to(covariance)
