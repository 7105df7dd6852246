"""Classifiers of the study as networks: all seeds of an architecture and role as one stack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from saeflow.datasets.batch import Batch
from saeflow.datasets.inputs import Input
from saeflow.models import classifiers
from saeflow.models.networks import NETWORKS, Hooked, Network


@NETWORKS.register("classifiers")
class Classifiers(Network):
    """The .safetensors of `train_classifiers`."""

    reads = "images"

    def __init__(
        self, stack: classifiers.StackedClassifier, role: str, seeds: Sequence[int], hooks: Sequence[str]
    ) -> None:
        self.stack, self.hooks, self.n_members = stack, tuple(hooks), len(seeds)
        self._role, self._seeds = role, seeds

    @classmethod
    def open(cls, files: Sequence[Path], given: Input, settings: Mapping[str, Any], device: str) -> Self:
        seeds = settings["seeds"]
        stack = classifiers.load(files[0], device, seeds)
        return cls(stack, classifiers.describe(files[0])["role"], seeds, settings["hook_points"])

    def widths(self) -> dict[str, int]:
        return {hook: self.stack.width(hook) for hook in self.hooks}

    def values(self, batch: Batch) -> dict[Hooked, Float[Tensor, "n_rows d"]]:
        values = self.stack.values(batch.items.to(self.stack.device), self.hooks)
        rows = batch.rows.to(self.stack.device)
        return {(i, hook): values[hook][i][rows] for i in range(self.n_members) for hook in self.hooks}

    def metadata(self, member: int, hook: str) -> dict[str, Any]:
        return {
            "architecture": self.stack.architecture,
            "role": self._role,
            "seed": self._seeds[member],
            "hook_point": self.stack.resolve(hook),
        }
