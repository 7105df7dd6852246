"""The task of an injection study: which classes are whose, and which is given."""

from dataclasses import dataclass
from typing import Self

from saeflow.config.images import Classifiers
from saeflow.config.injection import Injection


@dataclass(frozen=True)
class Task:
    """Which classes are whose."""

    target_classes: tuple[int, ...]
    source_classes: tuple[int, ...]
    concept: int
    lookalike: int
    n_classes: int

    @classmethod
    def of(cls, study: Injection, classifiers: Classifiers, n_classes: int) -> Self:
        """Task of a study's sections."""
        target, source = (classifiers.roles[role].classes for role in (study.target, study.source))
        return cls(target, source, study.concept, study.lookalike, n_classes)

    @property
    def shared(self) -> tuple[int, ...]:
        """Classes that both networks know."""
        return tuple(c for c in self.target_classes if c in self.source_classes)

    @property
    def unseen(self) -> tuple[int, ...]:
        """Classes that neither network knows."""
        return tuple(c for c in range(self.n_classes) if c not in (*self.target_classes, *self.source_classes))

    def with_concept(self, concept: int) -> Self:
        """The same networks, another of the source's classes as the concept."""
        return type(self)(self.target_classes, self.source_classes, concept, self.lookalike, self.n_classes)
