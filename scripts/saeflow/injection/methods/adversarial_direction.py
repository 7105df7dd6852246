"""Method 7: a score that is trained against the worst perturbation of every row, and against look-alikes."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

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
_ROWS = 128
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
    controls = ("untrained_target",)
    radius: float = 1.0

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
        space = AlignedSpace.learned(seen.source, seen.target)
        rows = guard.source_activations(SITE)
        own = seen.target[:, : len(seen.images.labels)]
        average = torch.stack([gaussian.covariance for gaussian in seen.own_classes()]).mean(0)
        mean, whitening = own.mean(1), _power(average, -0.5)
        carried = [space.to(rows_of(*rows, label)) for label in (task.concept, task.lookalike)]
        whitened = ((values - mean[:, None]) @ whitening for values in (*carried, own))
        factors = (_power(c, 0.5) @ whitening for c in (space.noise, self._pixel_noise(target, guard)))
        (weight, bias), *later = self._train(Rows(*whitened, *factors), guard)
        # The whitening goes into the first layer.
        first = whitening @ weight, bias - (mean[:, None] @ whitening @ weight)[:, 0]
        last_weight, last_bias = later[-1]
        layers = [first, *later[:-1], (_SCALE * last_weight, _SCALE * last_bias)]
        return Grafted(target, self.site, {task.concept: Head(*layers)})

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
        sizes = (d, _UNITS, 1)
        layers = [
            (
                (2 / i) ** 0.5 * torch.randn(i, o, generator=generator).to(rows.own).repeat(m, 1, 1),
                rows.own.new_zeros(m, o),
            )
            for i, o in itertools.pairwise(sizes)
        ]
        parameters = [parameter.requires_grad_() for layer in layers for parameter in layer]
        optimizer = AdamW(parameters, 0.0)
        sign = torch.ones(4 * _ROWS, device=rows.own.device)
        sign[_ROWS:] = -1
        for step, h in enumerate(_batches(rows, generator)):
            if self.radius:
                h = h + self._worst(h, layers, sign, rows.perturbation)
            loss = softplus(-sign * _score(h, layers)).mean(1).sum()
            learning_rate = _LEARNING_RATE / 2 * (1 + math.cos(math.pi * step / _STEPS))
            optimizer.step(torch.autograd.grad(loss, parameters), learning_rate)
        return [(weight.detach(), bias.detach()) for weight, bias in layers]

    def _worst(
        self, h: Float[Tensor, "m n d"], layers: list, sign: Float[Tensor, " n"], factor: Float[Tensor, "m d d"]
    ) -> Float[Tensor, "m n d"]:
        """Perturbation within the ball that raises the loss most, to first order."""
        h = h.requires_grad_()
        (gradient,) = torch.autograd.grad((-sign * _score(h, layers)).sum(), h)
        direction = gradient @ factor.mT
        length = direction.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
        return self.radius * (direction / length) @ factor


def _batches(rows: Rows, generator: torch.Generator) -> Iterator[Float[Tensor, "m n d"]]:
    """Concept, look-alike and twice as many own rows; what the map leaves out is added to carried rows."""
    d = rows.own.shape[-1]
    for _ in range(_STEPS):
        concept, lookalike, own = (
            values[:, torch.randint(values.shape[1], (n,), generator=generator).to(values.device)]
            for values, n in ((rows.concept, _ROWS), (rows.lookalike, _ROWS), (rows.own, 2 * _ROWS))
        )
        noise = torch.randn(2 * _ROWS, d, generator=generator).to(own) @ rows.left_out
        yield torch.cat([torch.cat([concept, lookalike], 1) + noise, own], 1)


def _score(h: Float[Tensor, "m n d"], layers: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "m n"]:
    for i, (weight, bias) in enumerate(layers):
        h = torch.baddbmm(bias[:, None], h.relu() if i else h, weight)
    return h[..., 0]


def _power(covariance: Float[Tensor, "m d d"], exponent: float) -> Float[Tensor, "m d d"]:
    """Symmetric power, eigenvalues floored at 1e-6 of the largest."""
    values, vectors = torch.linalg.eigh(covariance.double())
    floored = values.clamp(min=1e-6 * values[:, -1:])
    return ((vectors * floored[:, None] ** exponent) @ vectors.mT).to(covariance)
