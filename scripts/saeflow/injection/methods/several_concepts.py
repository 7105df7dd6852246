"""Method 6: the concept and its look-alike, injected at once."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from saeflow.config.injection import Injection
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.densities import LikelihoodRatio
from saeflow.injection.knowledge import T1_PLUS, T2, B
from saeflow.injection.method import Method, Stage, register
from saeflow.injection.networks import Grafted
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier


@register
@dataclass(frozen=True, kw_only=True)
class SeveralConcepts(Method):
    """s_c = log p(h | c) - log(max_j p(h | own class j) + p(h | the other concept));  c: the concept, the look-alike.

    Each concept is the other's look-alike, and neither is favoured: an image goes to the likelier of the two, so that
    the target can answer with the look-alike instead of taking it for the concept. Rows are carried into the target's
    space by a ridge map that is learned on the target's own images.
    """

    name = "several_concepts"
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
        rows, own = guard.source_activations(SITE), seen.own_classes
        carried = {label: space.carried(rows_of(*rows, label)) for label in (task.concept, task.lookalike)}
        heads = {
            label: LikelihoodRatio(gaussian, own, [g for other, g in carried.items() if other != label], handicap=0)
            for label, gaussian in carried.items()
        }
        return Grafted(target, self.site, heads)

    def stages(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> Iterator[Stage]:
        yield Stage(self.inject(source, target, guard), (guard.task.concept, guard.task.lookalike))
