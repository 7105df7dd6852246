"""Methods 1, 3 and 4: concepts in the latent spaces of sparse autoencoders, aligned and computed offline."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from saeflow.config.injection import Injection
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.alignment import procrustes
from saeflow.injection.concept_saes import ConceptSpace
from saeflow.injection.densities import Gaussian, LikelihoodRatio, LinearRatio
from saeflow.injection.knowledge import T1_PLUS, T2, B
from saeflow.injection.method import Method, NotApplicableError, register
from saeflow.injection.networks import Grafted
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier
from saeflow.sae.architectures import SparseAutoencoder


@dataclass(frozen=True, kw_only=True)
class ConceptSpaces(Method):
    """z_B = SAE_B(h_B),  z_A = SAE_A(h_A);  Q = Procrustes(z_B -> z_A);  g(h_B) = decode_A(Q z_B).

    Q is found on images of the shared classes (and of doodles, where they are allowed). The source's rows of the
    concept and of the look-alike go through g; what g leaves out on the target's own images widens them. The network
    that results has no SAE in it: only vectors in the target's own activation space, computed beforehand.

    Arguments:
        d_sae, k: size and sparsity of the SAEs; those of `concept_spaces` if not given.
        vectors: one direction per class, C^-1 mu_c with the average covariance C of all classes, in place of a
            Gaussian each. Directions in which the target's own classes hardly vary, its free space, weigh most.
    """

    family = "sae"
    d_sae: int | None = None
    k: int | None = None
    vectors: bool = False

    @property
    def draws(self) -> str:
        """Those of the variant that compares the same rows otherwise."""
        return self.name if self.vectors else self.label

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        seen = Seen.of(source, target, guard, self.knowledge)
        concept, lookalike = guard.once_for_pair("carried", lambda: self._carried(seen, guard))
        if self.vectors:
            head = LinearRatio(concept, seen.own_classes.gaussians, [lookalike])
        else:
            head = LikelihoodRatio(concept, seen.own_classes, [lookalike])
        return Grafted(target, self.site, {guard.task.concept: head})

    def _carried(self, seen: Seen, guard: Guard) -> list[Gaussian]:
        """The concept and the look-alike in the target's space."""
        task, labels = guard.task, seen.images.labels
        of_source, of_target = (ConceptSpace(self._saes(of, guard)) for of in ("source", "target"))
        shared = torch.ones(seen.source.n, dtype=torch.bool, device=labels.device)
        shared[: len(labels)] = torch.isin(labels, torch.tensor(task.shared, device=labels.device))
        x, y = seen.source.values(), seen.target.values()
        rotation = procrustes(of_source.encode(x[:, shared]), of_target.encode(y[:, shared]))
        space = AlignedSpace.of(lambda rows: of_target.decode(rotation(of_source.encode(rows))), x, y)
        rows = guard.source_activations(SITE)
        return [space.carried(rows_of(*rows, label)) for label in (task.concept, task.lookalike)]

    def _saes(self, of: str, guard: Guard) -> Sequence[SparseAutoencoder]:
        try:
            return guard.concept_saes(of, self.d_sae, self.k)
        except KeyError as error:
            raise NotApplicableError(f"no SAE {error}: the sweeps run among the first architectures only") from None


@register
@dataclass(frozen=True, kw_only=True)
class PrecomputedAlignment(ConceptSpaces):
    __doc__ = ConceptSpaces.__doc__
    name = "precomputed_alignment"

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1_PLUS | B, site=SITE, variant="vectors", vectors=True),
            cls(knowledge=T2 | B, site=SITE, variant="doodles"),
        ]


@register
@dataclass(frozen=True, kw_only=True)
class DimensionScaling(ConceptSpaces):
    """`PrecomputedAlignment` with the SAE sizes of `concept_spaces.sizes`, among the first
    `concept_spaces.sweep_architectures` architectures only."""

    name = "dimension_scaling"
    # The sweeps' sizes are trained for sources and targets alone.
    controls = ()

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        sizes = settings.concept_spaces.sizes
        return [cls(knowledge=T1_PLUS | B, site=SITE, variant=f"d_sae={size}", d_sae=size) for size in sizes]


@register
@dataclass(frozen=True, kw_only=True)
class SparsityOptimisation(ConceptSpaces):
    """`PrecomputedAlignment` with the sparsities of `concept_spaces.sparsities`, among the first
    `concept_spaces.sweep_architectures` architectures only."""

    name = "sparsity_optimisation"
    controls = ()

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        sparsities = settings.concept_spaces.sparsities
        return [cls(knowledge=T1_PLUS | B, site=SITE, variant=f"k={k}", k=k) for k in sparsities]
