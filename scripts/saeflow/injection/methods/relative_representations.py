"""Relative representations: both networks described by what their values resemble."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.heads import ridge
from saeflow.injection.knowledge import T1_PLUS
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

_ANCHORS = 256


@register
@dataclass(frozen=True, kw_only=True)
class RelativeRepresentations(Method):
    """logit_c = w r_A(x) + b,  r(x)_i = cos(h(x) - mean, h(a_i) - mean) for anchors a_i among the target's own images.

    (w, b): ridge regression from r_B to the source's logit of the concept, on the same images; the target's r_A takes
    the place of r_B. Moschella et al. 2023, "Relative representations enable zero-shot latent space communication".
    """

    name = "relative_representations"
    family = "baseline"

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        return [cls(knowledge=T1_PLUS, site="last.pre")]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        images = guard.own().images
        anchors = torch.randperm(len(images), generator=guard.generator("anchors"))[:_ANCHORS].to(images.device)
        spaces = [guard.activations(network, images, self.site) for network in (source, target)]
        at_source, at_target = (Relative(h.mean(1, keepdim=True), h[:, anchors]) for h in spaces)
        y = guard.activations(source, images, "logits")[..., guard.task.concept]
        head = Head(ridge(at_source(spaces[0]), y, strength=1e-4))
        return Grafted(target, self.site, {guard.task.concept: nn.Sequential(at_target, head)})


class Relative(nn.Module):
    """Cosines of centred values with centred anchors."""

    def __init__(self, mean: Float[Tensor, "m 1 d"], anchors: Float[Tensor, "m k d"]) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean, requires_grad=False)
        self.anchors = nn.Parameter(nn.functional.normalize(anchors - mean, dim=-1), requires_grad=False)

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n k"]:
        return nn.functional.normalize(h - self.mean, dim=-1) @ self.anchors.mT
