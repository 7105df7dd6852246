"""Networks under study, each kind behind one interface: what is captured from them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from saeflow.datasets.batch import Batch
from saeflow.datasets.inputs import Input
from saeflow.registry import Registry

Hooked = tuple[int, str]
"""Number of a member, and name of a hook point."""


class Network(ABC):
    """One network, or the members of a stack, which run as one; with the hook points that the study asks for."""

    reads: ClassVar[str]
    """Kind of its input."""
    hooks: tuple[str, ...]
    """Names of hook points, as folders have them."""
    n_members: int

    @classmethod
    @abstractmethod
    def open(cls, files: Sequence[Path], given: Input, settings: Mapping[str, Any], device: str) -> Self:
        """The network of its files, ready to read its input.

        Arguments:
            settings: what the study says of it: its section, `hook_points`, and of a stack `seeds`.
        Raises:
            ValueError: files, hook points, input and settings that do not go with one another; says which.
        """

    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Size of the activations at each hook point."""

    @abstractmethod
    def values(self, batch: Batch) -> dict[Hooked, Float[Tensor, "n_rows d"]]:
        """Activations of a batch's rows, of each member at each hook point, from one pass that goes no further than the
        last of them."""

    @abstractmethod
    def metadata(self, member: int, hook: str) -> dict[str, Any]:
        """What a store says of the network."""


NETWORKS: Registry[type[Network]] = Registry("saeflow.models.networks")
"""Kinds of network, a module of its name each."""
