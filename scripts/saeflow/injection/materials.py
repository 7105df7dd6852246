"""Everything that an injection study has: images, networks, SAEs, and what networks make of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from saeflow.config.images import Classifiers
from saeflow.config.injection import Injection
from saeflow.datasets.doodles import doodles, fragments
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.injection.forward import Forward
from saeflow.injection.knowledge import Knowledge
from saeflow.injection.task import Task
from saeflow.models import classifiers
from saeflow.models.classifiers import StackedClassifier
from saeflow.reproduce import child_seed
from saeflow.sae.architectures import SparseAutoencoder

UNTRAINED = ("untrained_source", "untrained_target")
"""Controls in which a side's weights are as drawn, and the roles that their networks go by."""


@dataclass(frozen=True)
class Labelled:
    """Images and their labels."""

    images: Float[Tensor, "images 1 h w"]
    labels: Int[Tensor, " images"]

    def of(self, *classes: int) -> Float[Tensor, "images 1 h w"]:
        """Images of some classes."""
        return self.images[torch.isin(self.labels, torch.tensor(classes, device=self.labels.device))]


@dataclass
class Materials:
    """Everything that a study has, as tensors on one device; methods reach it through a `Guard` only.

    Arguments:
        task: which classes are whose.
        train: training split; no calibration or test image is here.
        settings: the study's section.
        seed: root of every draw.
        device: where images lie and networks run.
        networks: stacks by role and architecture, one member per seed.
        classes: labels that each role was trained on.
        concept_saes: SAEs by role, architecture and (d_sae, k), one per member.
        values: file of `saeflow.injection.captured`; what is not in it is run.
    """

    task: Task
    train: ImageSplit
    settings: Injection
    seed: int
    device: torch.device | str = "cpu"
    networks: Mapping[str, Mapping[str, StackedClassifier]] = field(default_factory=dict)
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    concept_saes: Mapping[tuple[str, str, int, int], Sequence[SparseAutoencoder]] = field(default_factory=dict)
    values: Path | None = None

    @classmethod
    def of(
        cls,
        dataset: ImageDataset,
        study: Injection,
        roles: Classifiers,
        weights: Sequence[Path],
        **more: Any,
    ) -> Self:
        """Materials of a dataset, the study's sections and the weights of its networks."""
        networks: dict[str, dict[str, StackedClassifier]] = {}
        for path in weights:
            described = classifiers.describe(path)
            role, architecture = described["role"], described["architecture"]
            stack = classifiers.load(path, more.get("device", "cpu"), roles.seeds_of(role))
            networks.setdefault(role, {})[architecture] = stack
        task = Task.of(study, roles, dataset.n_classes)
        classes = {name: role.classes for name, role in roles.roles.items()}
        return cls(task, dataset.train, study, networks=networks, classes=classes, **more)

    @cached_property
    def forward(self) -> Forward:
        """Runs networks in batches, or reads what they gave, and remembers it."""
        return Forward(self.device, None if self.values is None else self._captured)

    @cached_property
    def _file(self) -> safe_open:
        return safe_open(self.values, framework="pt")

    @cached_property
    def _in_file(self) -> frozenset[str]:
        return frozenset(self._file.keys())

    def _captured(self, network: StackedClassifier, images: Tensor, hook_point: str) -> Tensor | None:
        """Values from the file, if they are in it."""
        name = self.name_of(network, images, hook_point)
        return self._file.get_tensor(name) if name in self._in_file else None

    def name_of(self, network: StackedClassifier, images: Tensor, hook_point: str) -> str | None:
        """How values are called in the file: role, architecture, images and hook point; None for what has no name."""
        every = {**self.networks, **self._drawn}
        stacks = {id(stack): f"{role}.{name}" for role, of_role in every.items() for name, stack in of_role.items()}
        if id(network) not in stacks or id(images) not in self._names:
            return None
        return f"{stacks[id(network)]}.{self._names[id(images)][0]}.{network.resolve(hook_point)}"

    def named(self, name: str, images: Tensor) -> Tensor:
        """The images, known by a name from now on."""
        self._names[id(images)] = name, images
        return images

    @cached_property
    def _names(self) -> dict[int, tuple[str, Tensor]]:
        return {}

    @cached_property
    def remembered(self) -> dict[tuple[str, Knowledge, tuple, tuple[int, ...]], tuple]:
        """What methods keep from pair to pair, and from variant to variant."""
        return {}

    def forget(self, network: StackedClassifier) -> None:
        """Drop what methods keep of a network."""
        for key in [key for key, (of, _) in self.remembered.items() if network in of]:
            del self.remembered[key]

    @cached_property
    def labelled(self) -> Labelled:
        """The training split."""
        labels = torch.from_numpy(self.train.labels)
        return Labelled(torch.from_numpy(self.train.inputs()).to(self.device), labels.to(self.device))

    def images_of(self, classes: Sequence[int]) -> Labelled:
        """Training images of some classes; the same tensors at each call."""
        key = tuple(sorted(classes))
        if key not in self._by_classes:
            rows = torch.from_numpy(np.flatnonzero(np.isin(self.train.labels, key))).to(self.device)
            images = self.named("-".join(map(str, key)), self.labelled.images[rows])
            self._by_classes[key] = Labelled(images, self.labelled.labels[rows])
        return self._by_classes[key]

    @cached_property
    def _by_classes(self) -> dict[tuple[int, ...], Labelled]:
        return {}

    @cached_property
    def doodles(self) -> Float[Tensor, "images 1 h w"]:
        """Synthetic images of the study."""
        own = self.images_of(self.task.target_classes).images
        made = doodles(self.settings.synthetic_images, own, seed=child_seed(self.seed, "doodles"))
        return self.named("doodles", made.to(self.device))

    @cached_property
    def fragments(self) -> Float[Tensor, "images 1 h w"]:
        """Synthetic images for the source to choose from."""
        own, n = self.images_of(self.task.target_classes).images, self.settings.distillation.fragments
        return fragments(n, own, seed=child_seed(self.seed, "fragments")).to(self.device)

    def roles(self, control: str = "") -> tuple[str, str]:
        """Roles of source and target, or what a control puts in their place; `UNTRAINED` are no roles of the study."""
        source, target = self.settings.source, self.settings.target
        if control == "blind_source":
            source = self.settings.blind
        return (
            UNTRAINED[0] if control == UNTRAINED[0] else source,
            UNTRAINED[1] if control == UNTRAINED[1] else target,
        )

    def pair(self, architectures: tuple[str, str], control: str = "") -> tuple[StackedClassifier, StackedClassifier]:
        """Source and target networks of a pair under a control; the same objects each time."""
        source, target = (self.stack(*key) for key in zip(self.roles(control), architectures, strict=True))
        return source, target

    def stack(self, role: str, architecture: str) -> StackedClassifier:
        """Networks of a role, one of `UNTRAINED` too; the same object each time."""
        if role not in UNTRAINED:
            return self.networks[role][architecture]
        if architecture not in self._drawn[role]:
            trained = self.settings.source if role == UNTRAINED[0] else self.settings.target
            self._drawn[role][architecture] = untrained(self.networks[trained][architecture], role, self.seed)
        return self._drawn[role][architecture]

    @cached_property
    def _drawn(self) -> dict[str, dict[str, StackedClassifier]]:
        return {role: {} for role in UNTRAINED}


def untrained(like: StackedClassifier, role: str, seed: int) -> StackedClassifier:
    """Networks like those given, with weights as drawn.

    Arguments:
        role: one of `UNTRAINED`.
        seed: root of the draws.
    """
    fresh = StackedClassifier(like.architecture, like.image_shape, like.n_classes, like.n_members, like.spec)
    fresh.initialize([child_seed(seed, "injection", role, like.architecture, i) for i in range(like.n_members)])
    return fresh.requires_grad_(False).to(like.device)
