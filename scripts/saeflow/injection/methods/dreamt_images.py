"""Images dreamt by the source, and a new row of the target's last layer that knows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.heads import ridge
from saeflow.injection.knowledge import T2
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Gate, Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.models.adamw import AdamW
from saeflow.models.classifiers import StackedClassifier

_DREAMS = 16
_STEPS = 64
_LEARNING_RATE = 0.1
_ROUGHNESS = 1.0


@register
@dataclass(frozen=True, kw_only=True)
class DreamtImages(Method):
    """x* = argmax_x log p_B(c | x) - lambda mean |grad x|^2 from noise;  s(h) = w h + b parts h_A(x*) from h_A(own).

    Activation maximisation (Erhan et al. 2009) with a smoothness prior; x = sigmoid of what is optimised. (w, b): ridge
    regression to +1 and -1, both sides weighted alike. The source's other classes are dreamt too; the variant `with
    rivals` puts them on the side of -1.
    """

    name = "dreamt_images"
    family = "baseline"
    rivals: bool

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        named = {"concept only": False, "with rivals": True}
        return [cls(variant=name, knowledge=T2, site="last.pre", rivals=rivals) for name, rivals in named.items()]

    @property
    def draws(self) -> str:
        """One name for both: the same dreams."""
        return f"{self.name}/with rivals"

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        concept, own = guard.task.concept, guard.own().images
        labels = concept, *(label for label in guard.task.source_classes if label != concept)
        dreams = guard.once(
            source, "dreams", lambda: dream(source, labels, [guard.noise(_DREAMS, label) for label in labels])
        )
        if not self.rivals:
            dreams = dreams[:1]
        seen = [target.values(images, (self.site,))[self.site] for images in dreams]
        h = torch.cat([*seen, guard.activations(target, own, self.site)], dim=1)
        is_concept = torch.arange(h.shape[1], device=h.device) < _DREAMS
        share = torch.full_like(is_concept, 1 / len(own), dtype=torch.float32)
        share[: _DREAMS * len(dreams)] = 1 / _DREAMS
        y = 2 * is_concept.float().expand(len(h), -1) - 1
        head = Head(ridge(h, y, strength=1e-2, weights=share.expand(len(h), -1)))
        return Grafted(target, self.site, {concept: Gate(head)})


def dream(
    source: StackedClassifier, labels: Sequence[int], noise: Sequence[Float[Tensor, "n 1 h w"]]
) -> tuple[Float[Tensor, "m n 1 h w"], ...]:
    """Images of each member's own that it takes for each class, all members' from the same noise.

    Arguments:
        labels: the classes.
        noise: where the images of each start, as many for one as for another.
    """
    n = len(noise[0])
    # Dark on the whole, as most pixels of an image are.
    start = torch.cat(list(noise)) - 2
    x = start.expand(source.n_members, *start.shape).clone().requires_grad_()
    chosen = torch.tensor(labels, device=x.device).repeat_interleave(n).expand(source.n_members, -1)[..., None]
    optimizer = AdamW([x], 0.0)
    with torch.enable_grad():
        for _ in range(_STEPS):
            images = x.sigmoid()
            rough = images.diff(dim=-1).square().mean((-1, -2, -3)) + images.diff(dim=-2).square().mean((-1, -2, -3))
            loss = _ROUGHNESS * rough.sum() - source(images).log_softmax(-1).gather(-1, chosen).sum()
            optimizer.step(torch.autograd.grad(loss, [x]), _LEARNING_RATE)
    return x.detach().sigmoid().split(n, dim=1)
