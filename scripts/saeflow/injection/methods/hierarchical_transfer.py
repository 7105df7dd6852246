"""Method 5: first whether an image is foreign at all, then which foreign class it is."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.densities import HANDICAP, UNCERTAINTY, Gaussian, OwnClasses
from saeflow.injection.knowledge import T1_PLUS, T2, B
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Assembled, Grafted
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier


class TwoLevels(Assembled):
    """s = min(log p(h | foreign) - max_j log p(h | own class j), log p(h | concept) - log p(h | look-alike) - handicap)

    over UNCERTAINTY, as `LikelihoodRatio` is.

    Arguments:
        foreign: the super-class of all classes that the target does not know and the source does.
        concept, lookalike: its classes.
        own: the target's.
        handicap: nats in favour of the look-alike.
    """

    def __init__(
        self,
        foreign: Gaussian,
        concept: Gaussian,
        lookalike: Gaussian,
        own: OwnClasses,
        handicap: float = HANDICAP,
    ) -> None:
        super().__init__(own, foreign.density, concept.density, lookalike.density)
        self.handicap = handicap

    def combine(self, best_own: Tensor, foreign: Tensor, concept: Tensor, lookalike: Tensor) -> Float[Tensor, "m n"]:
        return (foreign - best_own).minimum(concept - lookalike - self.handicap) / UNCERTAINTY


@register
@dataclass(frozen=True, kw_only=True)
class HierarchicalTransfer(Method):
    """s = min(s_1, s_2): the super-class "not mine" (s_1), then the concept within it (s_2); see `TwoLevels`.

    Both levels are an image's own to pass: no evidence that it is a 4 makes up for its being one of the target's
    classes. The super-class is one Gaussian of all the source's rows that the target has no class for, carried into
    the target's space by a ridge map that is learned on the target's own images.
    """

    name = "hierarchical_transfer"
    family = "sae"

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T2 | B, site=SITE, variant="doodles"),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        task = guard.task
        seen = Seen.of(source, target, guard, self.knowledge)
        space = AlignedSpace.ridge(seen)
        rows = guard.source_activations(SITE)
        unknown = [label for label in task.source_classes if label not in task.target_classes]
        foreign, concept, lookalike = (
            space.carried(rows_of(*rows, *labels)) for labels in (unknown, (task.concept,), (task.lookalike,))
        )
        head = TwoLevels(foreign, concept, lookalike, seen.own_classes)
        return Grafted(target, self.site, {task.concept: head})
