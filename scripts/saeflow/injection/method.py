"""What an injection method is, and where methods are found by name."""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from saeflow.config.injection import METHODS, Injection
from saeflow.injection.knowledge import Knowledge, tier_name
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

Family = Literal["reference", "baseline", "sae", "older", "new"]

CONTROLS = ("untrained_target", "blind_source", "untrained_source", "no_lookalike_inputs")
"""Runs that tell what a method's result is made of: the target's weights as drawn; a source that was trained without
the concept; a source as drawn; no synthetic input that the source gives the concept."""


class NotApplicableError(ValueError):
    """A pair of networks that a method cannot handle by its nature, such as unequal architectures."""


@dataclass(frozen=True)
class Stage:
    """An injected network at one point of a method's work.

    Arguments:
        network: from images [n, 1, h, w] to logits [m, n, classes].
        concepts: classes that have been injected by then.
        name: of the point; "" for a method that has one only.
    """

    network: nn.Module
    concepts: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One way to inject a concept; an instance is one variant of it, and one row of the summary.

    A subclass's docstring is its equation and source.

    Attributes:
        name: key in the config.
        family: where the method comes from.
        knowledge: what this variant uses; the guard gives nothing else.
        site: hook point of the target whose values the new logit reads; "weights" if weights are replaced.
        variant: name of the variant; "" if there is one only.
        controls: those of `CONTROLS` that make sense.
        largest_shift: bound on what calibration may add to the logit; 0 keeps a score's own threshold at least.
        uses_source: whether the source matters; else a target's result stands for all its pairs.
        equal_architectures: whether source and target must be of one architecture.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    controls: ClassVar[tuple[str, ...]] = CONTROLS[:3]
    uses_source: ClassVar[bool] = True
    equal_architectures: ClassVar[bool] = False
    largest_shift: ClassVar[float] = math.inf
    knowledge: Knowledge
    site: str
    variant: str = ""

    @classmethod
    @abstractmethod
    def variants(cls, settings: Injection) -> list["Method"]:
        """The variants that a study runs, the one that stands for the method first."""

    @abstractmethod
    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        """An injected network for each member of the stacks.

        Arguments:
            source: knows the concept; one member per seed.
            target: does not; one member per seed.
            guard: everything else that the method may use.
        Returns:
            module from images [n, 1, h, w] to logits [m, n, classes].
        Raises:
            NotApplicableError: the method cannot handle this pair.
            KnowledgeError: it asks for more than its tier allows.
        """

    def prepare(  # noqa: B027
        self,
        sources: Sequence[StackedClassifier],
        target: StackedClassifier,
        guards: Sequence[Guard],
    ) -> None:
        """Fit together what `inject` will be asked for, where that is faster, and keep it by `Guard.once`.

        Arguments:
            sources: one for each pair and control that shares the target.
            guards: that of each.
        """

    def stages(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> Iterator[Stage]:
        """What is evaluated: the injected network, or several of a method that works in steps, the last one whole."""
        yield Stage(self.inject(source, target, guard), (guard.task.concept,))

    @property
    def tier(self) -> str:
        """Name of the tier."""
        return tier_name(self.knowledge)

    @property
    def draws(self) -> str:
        """Name of its draws and of what it keeps from pair to pair: variants of one name share them."""
        return self.label

    @property
    def label(self) -> str:
        """Name with the variant, unique within a study."""
        return f"{self.name}/{self.variant}" if self.variant else self.name


_REGISTERED: dict[str, type[Method]] = {}


def register(cls: type[Method]) -> type[Method]:
    """Make a method known by its name."""
    if cls.name in _REGISTERED and _REGISTERED[cls.name].__qualname__ != cls.__qualname__:
        raise ValueError(f"{cls.name}: two methods of this name")
    _REGISTERED[cls.name] = cls
    return cls


def method(name: str) -> type[Method]:
    """The method of a name; imports only its own module."""
    importlib.import_module(f"saeflow.injection.methods.{METHODS[name]}")
    return _REGISTERED[name]


def require_equal(source: StackedClassifier, target: StackedClassifier) -> None:
    """Raise NotApplicableError if the networks differ in architecture."""
    if source.architecture != target.architecture:
        raise NotApplicableError(
            f"weight surgery needs equal architectures, not {source.architecture} and {target.architecture}"
        )
