"""References: what no injection does, and what labelled images of the concept would give."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.heads import logistic, narrowed, ridge, widened
from saeflow.injection.knowledge import T0, T1_PLUS, Knowledge
from saeflow.injection.method import Method, register
from saeflow.injection.methods.distillation import learnt
from saeflow.injection.networks import Gate, Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.models.adamw import AdamW
from saeflow.models.classifiers import Images, StackedClassifier

_SITES = {"penultimate": "last.pre", "first": "first.pre"}
_EPOCHS = 5
_BATCH_SIZE = 256
_LEARNING_RATE = 2e-3
_LABELLED = T1_PLUS | Knowledge.LABELLED


@register
@dataclass(frozen=True, kw_only=True)
class References(Method):
    """The rows that every table needs.

    target alone: A as it is. Uncertainty: logit_c = -max_{j own} l_j, a novelty detector. Ensemble: log of the mean of
    A's and B's probabilities; it runs both networks. Oracle probe: logistic regression of "is the concept" on A's
    values, from labelled images. Oracle head: A's last layer fine-tuned on labelled images. Few shots: the probe, by
    ridge regression with both classes weighted alike, from n labelled images of the concept. Probes of a layer wider
    than 512 read 512 random directions of it. Oracle distillation: what `fragment_distillation` would learn if the
    source answered real images of its own classes instead of synthetic ones.
    """

    name = "references"
    family = "reference"
    kind: str
    shots: int | None = None

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        return [
            cls(variant="target alone", kind="target", knowledge=T0, site="logits"),
            cls(variant="uncertainty", kind="uncertainty", knowledge=T0, site="logits"),
            cls(variant="ensemble", kind="ensemble", knowledge=T0, site="logits"),
            *(
                cls(variant=f"oracle probe, {place}", kind="probe", knowledge=_LABELLED, site=site)
                for place, site in _SITES.items()
            ),
            cls(variant="oracle head", kind="head", knowledge=_LABELLED, site="last.post"),
            cls(variant="oracle distillation, penultimate", kind="distilled", knowledge=_LABELLED, site="last.pre"),
            *(
                cls(variant=f"{shots} shots, {place}", kind="few", knowledge=_LABELLED, site=site, shots=shots)
                for place, site in _SITES.items()
                for shots in settings.few_shots
            ),
        ]

    @property
    def controls(self) -> tuple[str, ...]:
        """An untrained target, where something is fitted on it."""
        return ("untrained_target",) if Knowledge.LABELLED in self.knowledge else ()

    @property
    def uses_source(self) -> bool:
        """Where the source answers."""
        return self.kind in ("ensemble", "distilled")

    @property
    def largest_shift(self) -> float:
        """None for the target as it is."""
        return 0.0 if self.kind == "target" else torch.inf

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        concept = guard.task.concept
        match self.kind:
            case "target":
                return target
            case "uncertainty":
                return Grafted(target, "logits", {concept: Uncertainty(guard.task.target_classes)})
            case "ensemble":
                return Ensemble(target, source)
            case "distilled":
                (head,) = self._distilled([source], target, [guard])
                return Grafted(target, self.site, {concept: Gate(head)})
        own, labelled = guard.own().images, guard.labelled(self.shots).images
        h = torch.cat([guard.activations(target, images, self.site) for images in (labelled, own)], dim=1)
        is_concept = torch.arange(h.shape[1], device=h.device) < len(labelled)
        if self.kind == "head":
            labels = torch.cat([guard.own().labels.new_full((len(labelled),), concept), guard.own().labels])
            return _fine_tuned(target, h, labels, guard.generator("order"))
        h, directions = narrowed([h], guard.generator("directions"))
        if self.kind == "probe":
            weight, bias = logistic(h, is_concept.float().expand(len(h), -1))
        else:
            weights = torch.where(is_concept, 1 / len(labelled), 1 / len(own)).expand(len(h), -1)
            weight, bias = ridge(h, 2 * is_concept.float().expand(len(h), -1) - 1, strength=1e-2, weights=weights)
        return Grafted(target, self.site, {concept: Gate(Head((widened(weight, directions), bias)))})

    def prepare(self, sources: Sequence[StackedClassifier], target: StackedClassifier, guards: Sequence[Guard]) -> None:
        if self.kind == "distilled":
            self._distilled(sources, target, guards)

    def _distilled(
        self, sources: Sequence[StackedClassifier], target: StackedClassifier, guards: Sequence[Guard]
    ) -> list[Head]:
        images = guards[0].source_images()
        all_count = images.new_ones(target.n_members, len(images))
        return learnt(sources, target, guards, self.site, images, lambda _: all_count)


def _fine_tuned(target: StackedClassifier, h: Tensor, labels: Tensor, generator: torch.Generator) -> StackedClassifier:
    """Copy of the target with its last layer trained on, by AdamW with a step size that falls by a cosine."""
    changed = copy.deepcopy(target)
    layer = changed.layers["logits"].requires_grad_(True)
    parameters = list(layer.parameters())
    optimizer = AdamW(parameters, 0.0)
    per_epoch = max(1, len(labels) // _BATCH_SIZE)
    n_steps = _EPOCHS * per_epoch
    for step in range(n_steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(labels), generator=generator).to(h.device)
        rows = order[step % per_epoch * _BATCH_SIZE :][:_BATCH_SIZE]
        logits = layer(h[:, rows]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels[rows].repeat(len(h)), reduction="sum") / len(rows)
        gradients = torch.autograd.grad(loss, parameters)
        optimizer.step(gradients, _LEARNING_RATE / 2 * (1 + math.cos(math.pi * step / n_steps)))
    return changed.requires_grad_(False)


class Uncertainty(nn.Module):
    """-max_j l_j over some classes.

    Arguments:
        classes: those of the target.
    """

    def __init__(self, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = list(classes)

    def forward(self, logits: Float[Tensor, "m n classes"]) -> Float[Tensor, "m n"]:
        return -logits[..., self.classes].max(-1).values


class Ensemble(nn.Module):
    """log((p_A + p_B) / 2), both networks run."""

    def __init__(self, first: StackedClassifier, second: StackedClassifier) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Images) -> Float[Tensor, "m n classes"]:
        return ((self.first(images).softmax(-1) + self.second(images).softmax(-1)) / 2).clamp(min=1e-30).log()
