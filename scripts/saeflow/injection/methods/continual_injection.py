"""Method 9: the concept, then further classes, one after another."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from saeflow.config.injection import Injection
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.densities import Gaussian, LikelihoodRatio
from saeflow.injection.knowledge import T1_PLUS, T2, B
from saeflow.injection.method import Method, Stage, register
from saeflow.injection.networks import Grafted
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier


@register
@dataclass(frozen=True, kw_only=True)
class ContinualInjection(Method):
    """s_t = log p(h | c_t) - log(max_j p(h | own class j) + sum_{i<t} p(h | c_i));  heads of earlier steps stay.

    Step t carries class c_t into the target's space from the networks that know it, by a ridge map learned on the
    target's own images. What was injected before is remembered as one Gaussian per class, the rival of what comes
    after (generative replay, Shin et al. 2017, with a density in place of a generator). The first step's rival is the
    look-alike, until the look-alike itself is injected. Forgetting is what later steps take from an earlier class.
    """

    name = "continual_injection"
    family = "sae"
    controls = ("untrained_target",)

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T2 | B, site=SITE, variant="doodles"),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        *_, last = self.stages(source, target, guard)
        return last.network

    def stages(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> Iterator[Stage]:
        task, settings = guard.task, guard.settings
        known: dict[int, Gaussian] = {}
        heads: dict[int, LikelihoodRatio] = {}
        for label, role in {task.concept: settings.source, **settings.sequence}.items():
            teacher = source if label == task.concept else guard.source_of(role)
            seen = Seen.of(teacher, target, guard, self.knowledge)
            space = AlignedSpace.ridge(seen)
            rows = guard.source_activations(SITE, None if label == task.concept else role)
            gaussian, own = space.carried(rows_of(*rows, label)), seen.own_classes
            if known:
                heads[label] = LikelihoodRatio(gaussian, own, list(known.values()), handicap=0)
            else:
                lookalike = space.carried(rows_of(*rows, task.lookalike))
                heads[label] = LikelihoodRatio(gaussian, own, [lookalike])
            known[label] = gaussian
            yield Stage(Grafted(target, self.site, dict(heads)), tuple(heads), f"+{label}")
