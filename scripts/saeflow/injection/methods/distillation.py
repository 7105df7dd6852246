"""The new method: a source's soft answers to synthetic images, learnt from what a target makes of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.heads import Whitened, distil
from saeflow.injection.knowledge import T2
from saeflow.injection.method import CONTROLS, Method, register
from saeflow.injection.methods.regression import log_odds
from saeflow.injection.networks import Gate, Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

_BLOCK = 2048


@register
@dataclass(frozen=True, kw_only=True)
class FragmentDistillation(Method):
    """s(h) = w relu(W h + b) + c  minimises  E_fragments CE(sigma(s(h_A)), p_B) + E_own CE(sigma(s(h_A)), 0).

    p_B: the source's probability of the concept among its own classes (Hinton et al. 2015). Fragments: warped parts of
    the target's own images, drawn so that the source answers each of its classes equally often; the strokes are real,
    the shapes are nobody's. Own: real images of the target's classes, which are not the concept. h_A is whitened first:
    what tells unknown classes apart lies in directions of little variance. The logit is a gate, answered where s is
    above its calibrated threshold, whatever the target's other logits say. Calibration may raise the threshold, but not
    lower it below the method's own: p_B as a guess among the source's classes, or p_B = 1/2 (`even odds`).
    """

    name = "fragment_distillation"
    family = "new"
    largest_shift = 0.0
    even_odds: bool = False

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        return [
            cls(variant="penultimate", knowledge=T2, site="last.pre"),
            cls(variant="first", knowledge=T2, site="first.pre"),
            cls(variant="penultimate, even odds", knowledge=T2, site="last.pre", even_odds=True),
        ]

    @property
    def controls(self) -> tuple[str, ...]:
        """None for another threshold of the same method."""
        return () if self.even_odds else CONTROLS

    @property
    def draws(self) -> str:
        """Those of the variant whose head it is."""
        return f"{self.name}/penultimate" if self.even_odds else self.label

    def prepare(self, sources: Sequence[StackedClassifier], target: StackedClassifier, guards: Sequence[Guard]) -> None:
        self._heads(sources, target, guards)

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        (head,) = self._heads([source], target, [guard])
        if not self.even_odds:
            head = head.raised(math.log(len(guard.task.source_classes) - 1))
        return Grafted(target, self.site, {guard.task.concept: Gate(head)})

    def _heads(
        self, sources: Sequence[StackedClassifier], target: StackedClassifier, guards: Sequence[Guard]
    ) -> list[Head]:
        fragments = guards[0].fragments()
        return learnt(sources, target, guards, self.site, fragments, lambda guard: guard.counted(fragments))


def learnt(
    sources: Sequence[StackedClassifier],
    target: StackedClassifier,
    guards: Sequence[Guard],
    site: str,
    images: Float[Tensor, "n 1 h w"],
    counted: Callable[[Guard], Float[Tensor, "m n"]],
) -> list[Head]:
    """Heads that answer images as each source does, and the target's own images with no; each is trained once.

    Arguments:
        guards: of each source, with the same permissions and draws.
        site: hook point of the target that they read.
        images: drawn so that a source answers each of its classes equally often.
        counted: from a source's guard, 1, or 0 for an image that is never drawn.
    """
    known: dict[tuple[StackedClassifier, bool], Head] = guards[0].once(target, "heads", dict)
    asked = [(source, guard.drop_concept) for source, guard in zip(sources, guards, strict=True)]
    new = {key: counted(guard) for key, guard in zip(asked, guards, strict=True) if key not in known}
    if new:
        of_new = [source for source, _ in new]
        known |= zip(new, _trained(of_new, target, guards[0], site, images, list(new.values())), strict=True)
    return [known[key] for key in asked]


def _trained(
    sources: Sequence[StackedClassifier],
    target: StackedClassifier,
    guard: Guard,
    site: str,
    images: Float[Tensor, "n 1 h w"],
    counted: Sequence[Float[Tensor, "m n"]],
) -> list[Head]:
    """Heads of `learnt`, trained together."""
    settings, own = guard.settings.distillation, guard.own().images
    if len(own) > settings.own_images:
        own = own[torch.randperm(len(own), generator=guard.generator("own"))[: settings.own_images].to(own.device)]

    def whitened() -> Whitened:
        blocks = (block for some in (images, own) for block in some.split(_BLOCK))
        return Whitened.of((target.values(block, (site,))[site] for block in blocks), guard.generator("directions"))

    logits = [guard.activations(source, images, "logits") for source in sources]
    p = torch.stack([log_odds(of_source, guard).sigmoid() for of_source in logits])
    classes = list(guard.task.source_classes)
    drawn = torch.stack([balanced(of[..., classes].argmax(-1), c) for of, c in zip(logits, counted, strict=True)])
    mine = p.new_full((*p.shape[:2], len(own)), settings.own_share / len(own))
    return distil(
        guard.once(target, "whitened", whitened),
        torch.cat([p, torch.zeros_like(mine)], dim=-1),
        weights=torch.cat([(1 - settings.own_share) * drawn, mine], dim=-1),
        hidden=settings.hidden,
        steps=settings.steps,
        batch_size=settings.batch_size,
        generator=guard.generator("head"),
    )


def balanced(answers: Tensor, counted: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Shares of rows that give each answer the same in total; 0 where a row does not count.

    Arguments:
        answers: which class, whole numbers.  Shape [m, n].
        counted: 1 or 0.
    """
    of_class = nn.functional.one_hot(answers) * counted[..., None]
    shares = of_class / of_class.sum(1, keepdim=True).clamp(min=1)
    return shares.sum(-1) / (of_class.sum(1, keepdim=True) > 0).sum(-1).clamp(min=1)
