"""An older method: the source's readout of the concept behind a rotation from the target's space into the source's."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from saeflow.config.injection import Injection
from saeflow.injection.alignment import Affine, procrustes
from saeflow.injection.knowledge import T1, B
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.injection.readouts import class_means, discriminant
from saeflow.models.classifiers import StackedClassifier

SITE = "last.pre"


@register
@dataclass(frozen=True, kw_only=True)
class ProcrustesProbe(Method):
    """score = w . relu(s R' h + o) + b;  R, s, o = argmin sum_i |h_B(x_i) - s R' h_A(x_i) - o|^2 over x_i shared.

    h are the values before the last ReLU. R is orthogonal, or a partial isometry between unequal widths, so that
    behind it the source's own ReLU and readout can run as they are. Probe "row": w, b are the source's logit row of the
    concept. Probe "fitted": w is Fisher's discriminant of the concept against the source's other classes, as spread as
    that logit over the source's images. After the older write-up's description; Schoenemann 1966 for R, Schoenemann &
    Carroll 1970 for s.
    """

    name = "procrustes_probe"
    family = "older"
    probe: Literal["row", "fitted"] = "row"

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1, site=SITE),
            cls(knowledge=T1 | B, site=SITE, variant="fitted_probe", probe="fitted"),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        concept, images = guard.task.concept, guard.shared().images
        rotation = procrustes(guard.activations(target, images, SITE), guard.activations(source, images, SITE))
        logits = source.layers["logits"]
        probe = Affine(logits.weight[..., concept, None], logits.bias[:, concept, None])
        if self.probe == "fitted":
            probe = _fitted(probe, guard)
        return Grafted(target, SITE, {concept: Head(rotation, probe)})


def _fitted(row: Affine, guard: Guard) -> Affine:
    """Discriminant of the concept against the source's other classes, all classes counting alike."""
    task = guard.task
    rows, labels = guard.source_activations("last.post")
    means = class_means(rows, labels, task.source_classes)
    others = torch.tensor([label != task.concept for label in task.source_classes], device=means.device)
    direction = means[:, ~others].mean(1) - means[:, others].mean(1)
    weight = discriminant(direction, rows)[..., None]
    weight = weight * (row(rows).std(1, keepdim=True) / (rows @ weight).std(1, keepdim=True).clamp(min=1e-6))
    return Affine(weight, torch.zeros_like(row.bias))
