"""Older methods that carry the concept's class vector, relative to the shared classes, into the target's space."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.alignment import Affine, procrustes, ridge
from saeflow.injection.knowledge import T1, T1_PLUS, B
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Grafted, Head
from saeflow.injection.protocol import Guard
from saeflow.injection.readouts import class_means, discriminant, in_logit_units
from saeflow.models.classifiers import StackedClassifier

SITE = "last.pre"


@dataclass(frozen=True, kw_only=True)
class _VectorTransfer(Method):
    """score = w . h in units of the target's logits;  w = (C + 0.1 tr(C)/d I)^-1 v;  v = (mu_c - mean_k mu_k) M.

    mu are the source's class means before its last ReLU, k the shared classes, M a linear map fitted on images of
    those, C the covariance of the target's values on its own classes. The variant `plain` takes w = v.

    Arguments:
        whiten: by C.
    """

    family = "older"
    whiten: bool = True

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1 | B, site=SITE, variant="plain", whiten=False),
        ]

    @abstractmethod
    def fit(self, of_source: Float[Tensor, "m n p"], of_target: Float[Tensor, "m n q"]) -> Affine:
        """M, from the values of both networks on the same images."""

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        task, shared = guard.task, guard.shared()
        to_target = self.fit(
            guard.activations(source, shared.images, SITE), guard.activations(target, shared.images, SITE)
        )
        means = class_means(*guard.source_activations(SITE), (task.concept, *task.shared))
        vector = ((means[:, 0] - means[:, 1:].mean(1))[:, None] @ to_target.weight)[:, 0]
        images = guard.own().images if self.whiten else shared.images
        rows = guard.activations(target, images, SITE)
        weight = (discriminant(vector, rows) if self.whiten else vector)[..., None]
        weight = weight * in_logit_units((rows @ weight)[..., 0], target, images, guard)[:, None, None]
        return Grafted(target, SITE, {task.concept: Head(Affine(weight, weight.new_zeros(len(weight), 1)))})


@register
@dataclass(frozen=True, kw_only=True)
class VectorSpaceAligned(_VectorTransfer):
    """The concept's vector rotated: M = s R, the scaled rotation nearest to the target's values on shared images.

    score = w . h;  w = (C + 0.1 tr(C)/d I)^-1 v;  v = s (mu_c - mean_k mu_k) R. Between unequal widths R is a partial
    isometry. After the older write-up's description; Schoenemann 1966 for R.
    """

    name = "vector_space_aligned"

    def fit(self, of_source: Float[Tensor, "m n p"], of_target: Float[Tensor, "m n q"]) -> Affine:
        return procrustes(of_source, of_target)


@register
@dataclass(frozen=True, kw_only=True)
class CrossArchitectureVector(_VectorTransfer):
    """The concept's vector through a learned projection: M = argmin sum_i |h_A(x_i) - M' h_B(x_i)|^2 + penalty |M|^2.

    score = w . h;  w = (C + 0.1 tr(C)/d I)^-1 v;  v = (mu_c - mean_k mu_k) M, centred, for any two widths. After the
    older write-up's description; Hoerl & Kennard 1970 for M.
    """

    name = "cross_architecture_vector"

    def fit(self, of_source: Float[Tensor, "m n p"], of_target: Float[Tensor, "m n q"]) -> Affine:
        return ridge(of_source, of_target)
