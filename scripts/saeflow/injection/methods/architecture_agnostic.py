"""Method 8: one concept space of several architectures, and a target that had no part in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.alignment import Sample, fitted
from saeflow.injection.densities import LikelihoodRatio
from saeflow.injection.knowledge import SIBLINGS, T1_PLUS, T2, B, Knowledge
from saeflow.injection.method import Method, NotApplicableError, register
from saeflow.injection.networks import Grafted
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

_DIMENSIONS = 64
_COMPONENTS = 32
_FLOOR = 1e-3


@register
@dataclass(frozen=True, kw_only=True)
class ArchitectureAgnostic(Method):
    """max_u sum_k u' P_k u,  P_k: projection on network k's values;  g = (u -> h_A) o (h_B -> u), both ridge maps.

    The space of the directions that the networks of other architectures have in common, the first eigenvectors of the
    sum of their projections: canonical correlation analysis of many sets (Carroll 1968; Kettenring 1971, MAXVAR). It is
    learned from networks of the target's and of the source's role, without the target's architecture and the source's;
    each of the two then reaches it by a map of its own. Each
    network counts with its first principal components. Rows of the concept go from B through it to A.
    """

    name = "architecture_agnostic"
    family = "sae"

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B | SIBLINGS, site=SITE),
            cls(knowledge=T2 | B | SIBLINGS, site=SITE, variant="doodles"),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        task = guard.task
        siblings = [network for role in ("target", "source") for network in guard.siblings(role).values()]
        if not siblings:
            raise NotApplicableError("the study has no architecture beside the pair's own")
        seen = Seen.of(source, target, guard, self.knowledge)
        sets = [seen.images.images, *([guard.synthetic()] if Knowledge.SYNTHETIC in self.knowledge else [])]

        def components(network: StackedClassifier) -> Tensor:
            return principal_components(torch.cat([guard.activations(network, images, SITE) for images in sets], 1))

        def common_values() -> Sample:
            of_each = [guard.once(network, "components", partial(components, network)) for network in siblings]
            parts = common_space(of_each, _DIMENSIONS).split([len(images) for images in sets], 1)
            return Sample(lambda: parts)

        # One for both orders of two architectures, and for whatever a control puts in their place.
        apart = sorted((source.architecture, target.architecture))
        common = guard.once(siblings[0], f"space without {apart}", common_values)
        (into, _), (out, _) = fitted(seen.source, common), fitted(common, seen.target)
        space = AlignedSpace.of(lambda rows: out(into(rows)), seen.source.values(), seen.target.values())
        rows = guard.source_activations(SITE)
        concept, lookalike = (space.carried(rows_of(*rows, label)) for label in (task.concept, task.lookalike))
        head = LikelihoodRatio(concept, seen.own_classes, [lookalike])
        return Grafted(target, self.site, {task.concept: head})


def common_space(values: Sequence[Float[Tensor, "m n _"]], dimensions: int) -> Float[Tensor, "m n u"]:
    """Coordinates of images that several networks agree on: of mean 0 and mean square 1, most agreed on first.

    Arguments:
        values: principal components of each network on the same images.
        dimensions: how many are kept, at most as many as there are.
    """
    whitened = torch.cat(list(values), -1)
    gram = (whitened.mT @ whitened / whitened.shape[1]).double()
    agreement, directions = torch.linalg.eigh(gram)
    kept = slice(max(0, gram.shape[-1] - dimensions), None)
    scale = agreement[:, None, kept].clamp(min=torch.finfo(whitened.dtype).tiny).rsqrt()
    return (whitened @ (directions[..., kept] * scale).to(whitened)).flip(-1)


def principal_components(values: Float[Tensor, "m n d"]) -> Float[Tensor, "m n k"]:
    """First principal components of a network, at most 32, each of variance 1 but for a floor."""
    centered = values - values.mean(1, keepdim=True)
    variances, directions = torch.linalg.eigh((centered.mT @ centered / values.shape[1]).double())
    floored = variances + _FLOOR * variances.mean(-1, keepdim=True)
    scaled = directions * floored[:, None].rsqrt()
    return centered @ scaled[..., -_COMPONENTS:].to(values)
