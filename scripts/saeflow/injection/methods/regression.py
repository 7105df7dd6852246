"""Regression of the source's logits on the target's values: on real images, or on doodles."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.heads import Ridge, narrowed, random_features, widened
from saeflow.injection.knowledge import T1, T1_PLUS, T2, Knowledge
from saeflow.injection.method import CONTROLS, Method, register
from saeflow.injection.networks import Grafted, Head, Layer, Upon
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

_SITES = {"penultimate": "last.pre", "first": "first.pre"}
_STRENGTH = 1e-4
_RANDOM_FEATURES = 512


@register
@dataclass(frozen=True, kw_only=True)
class RidgeRegression(Method):
    """logit_c = w h_A + b,  (w, b) = argmin sum_x (w h_A(x) + b - l_B,c(x))^2 + lambda |w|^2 over real images x.

    x: images of the shared classes (T1) or of all of the target's own (T1+); h_A: the target's preactivations at the
    site, 512 random directions of them where they are more; l_B,c: the source's logit of the concept. Hoerl and Kennard
    1970. The baseline of "relating two networks by what they both see".
    """

    name = "ridge_regression"
    family = "baseline"

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        tiers = {"T1": T1, "T1+": T1_PLUS}
        return [
            cls(variant=f"{place}, {tier}", knowledge=tiers[tier], site=site)
            for place, site in _SITES.items()
            for tier in ("T1+", "T1")
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        seen = guard.own() if Knowledge.OWN in self.knowledge else guard.shared()
        y = guard.activations(source, seen.images, "logits")[..., guard.task.concept]

        def factored() -> tuple[Ridge, Tensor | None]:
            h, directions = narrowed([guard.activations(target, seen.images, self.site)], guard.generator("directions"))
            return Ridge(h, strength=_STRENGTH), directions

        ridge, directions = guard.once(target, "ridge", factored)
        weight, bias = ridge.solve(y)
        return Grafted(target, self.site, {guard.task.concept: Head((widened(weight, directions), bias))})


@register
@dataclass(frozen=True, kw_only=True)
class DoodleRegression(Method):
    """logit_c = w [relu(U h_A + c)] + b,  (w, b): ridge regression to the source's log-odds of the concept, on doodles.

    log-odds: l_B,c - logsumexp of B's other trained logits. U, c: 512 random features of the standardised values
    (Rahimi and Recht 2008). Doodles are seen by nobody in training; both networks answer them, and what they answer
    relates the two representations.
    """

    name = "doodle_regression"
    family = "baseline"
    controls = CONTROLS

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        return [cls(variant=place, knowledge=T2, site=site) for place, site in _SITES.items()]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        images = guard.synthetic()
        weights = guard.counted(images)
        layer, features = guard.once(target, "features", lambda: self._features(target, guard))
        if weights.all():
            fit = guard.once(target, "ridge", lambda: Ridge(features, strength=_STRENGTH))
        else:
            fit = Ridge(features, strength=_STRENGTH, weights=weights)
        head = Head(fit.solve(log_odds(guard.activations(source, images, "logits"), guard)))
        return Grafted(target, self.site, {guard.task.concept: Upon(layer, head)})

    def _features(self, target: StackedClassifier, guard: Guard) -> tuple[Layer, Tensor]:
        h = guard.activations(target, guard.synthetic(), self.site)
        layer = Layer(*random_features(h, _RANDOM_FEATURES, guard.generator("features")))
        return layer, layer(h)


def log_odds(logits: Tensor, guard: Guard) -> Tensor:
    """l_c - logsumexp of the source's other trained logits.  Shape [m, n]."""
    others = [label for label in guard.task.source_classes if label != guard.task.concept]
    return logits[..., guard.task.concept] - logits[..., others].logsumexp(-1)
