"""The source's soft answers distilled into a small head of the target, over doodles and the target's own images."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from saeflow import config
from saeflow.injection.heads import Whitened, distil
from saeflow.injection.knowledge import T2
from saeflow.injection.method import CONTROLS, Method, register
from saeflow.injection.methods.regression import log_odds
from saeflow.injection.networks import Gate, Grafted
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier


@register
@dataclass(frozen=True, kw_only=True)
class DoodleDistillation(Method):
    """s(h) = w relu(W h + b) + c  minimises  E_doodles CE(sigma(s(h_A)), p_B) + E_own CE(sigma(s(h_A)), 0).

    p_B: the source's probability of the concept among its own classes (Hinton et al. 2015); own: real images of the
    target's classes, which are not the concept. h_A is whitened first: what tells unknown classes apart lies in
    directions of little variance. The logit is a gate, answered where s exceeds its calibrated threshold, whatever the
    target's other logits say. Calibration may raise the threshold, but not lower it below the method's own: p_B as a
    guess among the source's classes would give it, or p_B = 1/2 (`even odds`).
    """

    name = "doodle_distillation"
    family = "new"
    largest_shift = 0.0
    even_odds: bool = False

    @classmethod
    def variants(cls, settings: config.Injection) -> list[Self]:
        return [
            cls(variant="penultimate", knowledge=T2, site="last.pre"),
            cls(variant="first", knowledge=T2, site="first.pre"),
            cls(variant="penultimate, even odds", knowledge=T2, site="last.pre", even_odds=True),
        ]

    @property
    def controls(self) -> tuple[str, ...]:
        """None for another threshold of the same head."""
        return () if self.even_odds else CONTROLS

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        settings = guard.settings.distillation
        doodles, own = guard.synthetic(), guard.own().images
        if len(own) > settings.own_images:
            own = own[torch.randperm(len(own), generator=guard.generator("own"))[: settings.own_images].to(own.device)]

        def whitened() -> Whitened:
            h = torch.cat([guard.activations(target, images, self.site) for images in (doodles, own)], dim=1)
            return Whitened.of(h, guard.generator("directions"))

        p = log_odds(guard.activations(source, doodles, "logits"), guard).sigmoid()
        counted = guard.synthetic_weights()
        nothing, one = p.new_zeros(len(p), len(own)), p.new_ones(len(p), len(own))
        head = distil(
            guard.once(target, "whitened", whitened),
            torch.cat([p, nothing], dim=1),
            weights=torch.cat([counted, one], dim=1),
            hidden=settings.hidden,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            generator=guard.generator("head"),
        )
        if not self.even_odds:
            head.biases[-1] += math.log(len(guard.task.source_classes) - 1)
        return Grafted(target, self.site, {guard.task.concept: Gate(head)})
