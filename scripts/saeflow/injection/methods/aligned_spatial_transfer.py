"""An older method: where the concept lies among the shared classes, rebuilt in the target's space."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.alignment import Affine, procrustes
from saeflow.injection.knowledge import T1_PLUS, B
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.injection.readouts import class_means, discriminant, in_logit_units
from saeflow.models.classifiers import StackedClassifier

SITE = "last.pre"
DIMENSIONS = 28
ALIGNED_SHARE = 0.7


class Principal(NamedTuple):
    """y = (h - mean) E, E the leading principal directions.

    Arguments:
        mean: [m, d].
        directions: E, orthonormal columns.  Shape [m, d, r].
    """

    mean: Float[Tensor, "m d"]
    directions: Float[Tensor, "m d r"]

    @classmethod
    def of(cls, rows: Float[Tensor, "m n d"], n_dimensions: int) -> "Principal":
        """Of rows; all directions if there are fewer than asked for."""
        mean = rows.mean(1)
        centered = rows - mean[:, None]
        _, vectors = torch.linalg.eigh((centered.mT @ centered / rows.shape[1]).double())
        return cls(mean, vectors.flip(-1)[..., :n_dimensions].to(rows))

    def __call__(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n r"]:
        return (h - self.mean[:, None]) @ self.directions


def placed(
    concept: Float[Tensor, "m p"],
    anchors: Float[Tensor, "m k p"],
    target_anchors: Float[Tensor, "m k q"],
    rotation: Float[Tensor, "m p q"],
) -> Float[Tensor, "m q"]:
    """p = mean_k a_k + t (b_c - b_k) R: the place that has the concept's differences to the shared classes.

    t is the ratio of the shared classes' mean distances from their centre, target's to source's, so that the distances
    to the anchors keep their proportion.

    Arguments:
        concept: b_c, class mean of the source.
        anchors, target_anchors: b_k and a_k, means of the shared classes.
        rotation: R, without scale.
    """

    def spread(points: Tensor) -> Tensor:
        return (points - points.mean(1, keepdim=True)).norm(dim=-1).mean(1)

    scale = spread(target_anchors) / spread(anchors).clamp(min=1e-6)
    return (target_anchors + scale[:, None, None] * ((concept[:, None] - anchors) @ rotation)).mean(1)


def free_part(vector: Float[Tensor, "m q"], spanning: Float[Tensor, "m k q"]) -> Float[Tensor, "m q"]:
    """What of a vector is orthogonal to others."""
    basis, sizes, _ = torch.linalg.svd(spanning.mT, full_matrices=False)
    basis = basis * (sizes > 1e-5 * sizes[:, :1])[:, None]
    return vector - ((vector[:, None] @ basis) @ basis.mT)[:, 0]


@register
@dataclass(frozen=True, kw_only=True)
class AlignedSpatialTransfer(Method):
    """v = 0.7 (p - a) + 0.3 f |p - a| / |f|;  p = mean_k a_k + t (b_c - b_k) R;  f = (p - a) orthogonal to all a_j - a.

    All in 28 principal coordinates y of the values before the last ReLU of each network: b and a are class means of the
    source and the target, k the shared classes, j the target's own, a their centre, R the rotation fitted on images of
    the shared classes (Schoenemann 1966), t the ratio of the shared classes' distances. f is the free space, which no
    class of the target uses. The score is w . y in units of the target's logits, w = (C + 0.1 tr(C)/28 I)^-1 v with C
    the covariance of y on the target's classes; the variant `plain` takes w = v. After the older write-up's
    description.

    Arguments:
        whiten: by C.
    """

    name = "aligned_spatial_transfer"
    family = "older"
    whiten: bool = True

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1_PLUS | B, site=SITE, variant="plain", whiten=False),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        task, shared, own = guard.task, guard.shared(), guard.own()
        of_source, source_labels = guard.source_activations(SITE)
        of_target = guard.activations(target, own.images, SITE)
        theirs = guard.once(source, "principal", lambda: Principal.of(of_source, DIMENSIONS))
        ours = guard.once(target, "principal", lambda: Principal.of(of_target, DIMENSIONS))
        rotation = procrustes(
            theirs(guard.activations(source, shared.images, SITE)), ours(guard.activations(target, shared.images, SITE))
        )
        unscaled = rotation.weight / torch.linalg.matrix_norm(rotation.weight, 2).clamp(min=1e-12)[:, None, None]
        there = theirs(class_means(of_source, source_labels, (task.concept, *task.shared)))
        rows = ours(of_target)
        classes = class_means(rows, own.labels, task.target_classes)
        anchors = classes[:, [task.target_classes.index(label) for label in task.shared]]
        centre = classes.mean(1)
        aligned = placed(there[:, 0], there[:, 1:], anchors, unscaled) - centre
        free = free_part(aligned, classes - centre[:, None])
        size = aligned.norm(dim=-1, keepdim=True) / free.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        vector = ALIGNED_SHARE * aligned + (1 - ALIGNED_SHARE) * size * free
        weight = discriminant(vector, rows) if self.whiten else vector
        score = (rows @ weight[..., None])[..., 0]
        weight = weight * in_logit_units(score, target, own.images, guard)[:, None]
        readout = ours.directions @ weight[..., None]
        return Grafted(target, SITE, {task.concept: Head(Affine(readout, -(ours.mean[:, None] @ readout)[:, 0]))})
