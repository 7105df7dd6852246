"""The task of a study, and the guard: the only way for a method to reach images, networks and statistics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from saeflow import config
from saeflow.datasets.doodles import doodles, fragments
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.injection.forward import Forward
from saeflow.injection.knowledge import Knowledge, KnowledgeError, tier_name
from saeflow.models import classifiers
from saeflow.models.classifiers import StackedClassifier
from saeflow.reproduce import child_seed
from saeflow.sae.architectures import SparseAutoencoder

T = TypeVar("T")

UNTRAINED = ("untrained_source", "untrained_target")
"""Controls in which a side's weights are as drawn, and the roles that their networks go by."""


@dataclass(frozen=True)
class Task:
    """Which classes are whose."""

    target_classes: tuple[int, ...]
    source_classes: tuple[int, ...]
    concept: int
    lookalike: int
    n_classes: int

    @classmethod
    def of(cls, study: config.Injection, classifiers: config.Classifiers, n_classes: int) -> Self:
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
    settings: config.Injection
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
        study: config.Injection,
        roles: config.Classifiers,
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
    def remembered(self) -> dict[tuple[str, Knowledge, str, int], tuple]:
        """What methods keep from pair to pair."""
        return {}

    def forget(self, network: StackedClassifier) -> None:
        """Drop what methods keep of a network."""
        for key in [key for key, (of, _) in self.remembered.items() if of is network]:
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


class Guard:
    """What one method sees of one pair: exactly what its tier allows.

    Every member but `task`, `seed`, `generator` and `activations` needs a permission and raises `KnowledgeError`
    without it. The networks' weights are open to all tiers.

    Arguments:
        materials: what the study has.
        allowed: what the method declares.
        asker: the method's name, for errors.
        source, target: the stacks of the pair, one member per seed.
        roles: what they were trained as, those of the study if not given.
        drop_concept: control: without the synthetic images to which a source gives the concept more than 0.1.
    """

    def __init__(
        self,
        materials: Materials,
        allowed: Knowledge,
        *,
        asker: str,
        source: StackedClassifier,
        target: StackedClassifier,
        roles: tuple[str, str] | None = None,
        drop_concept: bool = False,
    ) -> None:
        self._materials, self._allowed, self._asker = materials, allowed, asker
        self._source, self._target, self._roles = source, target, roles or materials.roles()
        self._drop_concept = drop_concept

    @property
    def task(self) -> Task:
        return self._materials.task

    @property
    def settings(self) -> config.Injection:
        """The study's section."""
        return self._materials.settings

    @property
    def device(self) -> torch.device | str:
        return self._materials.device

    def seed(self, *names: object) -> int:
        """Seed of one named draw of this method, the same for all pairs."""
        return child_seed(self._materials.seed, "injection", self._asker, *names)

    def generator(self, *names: object) -> torch.Generator:
        """Generator of one named draw, on the CPU."""
        return torch.Generator().manual_seed(self.seed(*names))

    def activations(
        self, network: StackedClassifier, images: Float[Tensor, "images 1 h w"], hook_point: str
    ) -> Float[Tensor, "members images d"]:
        """Values of a network at a hook point, in batches; remembered for whole sets of images that the guard gave."""
        return self._materials.forward(network, images, hook_point)

    def once(self, network: StackedClassifier, name: str, make: Callable[[], T]) -> T:
        """What `make` returns, made once for a method, a name and a network, and remembered for its other pairs."""
        key = self._asker, self._allowed, name, id(network)
        if key not in self._materials.remembered:
            # The network is kept beside it, so that no other can come to live at its address.
            self._materials.remembered[key] = network, make()
        return self._materials.remembered[key][1]

    def shared(self) -> Labelled:
        """Training images of the classes that both networks know."""
        self._need(Knowledge.SHARED, "images of the shared classes")
        return self._materials.images_of(self.task.shared)

    def own(self) -> Labelled:
        """Training images of the target's own classes."""
        self._need(Knowledge.OWN, "images of the target's own classes")
        return self._materials.images_of(self.task.target_classes)

    def synthetic(self) -> Float[Tensor, "images 1 h w"]:
        """Doodles: images made without any real one of a class that the target does not know."""
        self._need(Knowledge.SYNTHETIC, "synthetic inputs")
        return self._materials.doodles

    def fragments(self) -> Float[Tensor, "images 1 h w"]:
        """Warped parts of images of the target's own classes."""
        self._need(Knowledge.SYNTHETIC, "synthetic inputs")
        return self._materials.fragments

    def counted(self, images: Float[Tensor, "images 1 h w"]) -> Float[Tensor, "members images"]:
        """Which synthetic images count for each member: 1, or 0 where the control drops what looks like the concept."""
        self._need(Knowledge.SYNTHETIC, "synthetic inputs")
        if not self._drop_concept:
            return torch.ones(self._source.n_members, len(images), device=images.device)
        logits = self.activations(self._source, images, "logits")
        return (logits.softmax(-1)[..., self.task.concept] <= 0.1).float()

    def noise(self, n: int, *names: object) -> Float[Tensor, "images 1 h w"]:
        """Normal noise of a named draw, of the images' shape: where synthetic images may start from."""
        self._need(Knowledge.SYNTHETIC, "synthetic inputs")
        shape = n, *self._materials.train.images.shape[1:]
        return torch.randn(shape, generator=self.generator("noise", *names)).to(self.device)

    def others(self) -> Float[Tensor, "images 1 h w"]:
        """Training images of the classes that neither network knows."""
        self._need(Knowledge.OTHERS, "images of classes that nobody was trained on")
        return self._materials.images_of(self.task.unseen).images

    def source_activations(
        self, hook_point: str, role: str | None = None
    ) -> tuple[Float[Tensor, "members images d"], Int[Tensor, " images"]]:
        """The source's activations on its own training images, sorted by class and shuffled within each.

        Shuffled by a draw of their own, so that no row can be matched with an image. What a control puts in the
        source's place sees the same images, those of the concept too.

        Arguments:
            role: of the networks `source_of` gives; their own training images then.
        """
        self._need(Knowledge.SOURCE, "statistics of the source on its own images")
        network = self._source if role is None else self.source_of(role)
        seen = self._materials.images_of(self.task.source_classes if role is None else self._materials.classes[role])
        values = self.activations(network, seen.images, hook_point)
        order = torch.randperm(len(seen.labels), generator=self.generator("source activations")).to(values.device)
        order = order[seen.labels[order].argsort(stable=True)]
        return values[:, order], seen.labels[order]

    def concept_saes(self, of: str, d_sae: int | None = None, k: int | None = None) -> Sequence[SparseAutoencoder]:
        """SAEs of the pair's networks at `last.pre`, one per member, trained on each network's own training images.

        Arguments:
            of: "source" (needs SOURCE) or "target" (needs OWN).
            d_sae, k: size and sparsity; those of `concept_spaces` if not given.
        Raises:
            KeyError: the study trained none of that size for this architecture.
        """
        side = ("source", "target").index(of)
        if of == "source":
            self._need(Knowledge.SOURCE, "SAEs of the source's activations on its own images")
        else:
            self._need(Knowledge.OWN, "SAEs of the target's activations on its own images")
        architecture = (self._source, self._target)[side].architecture
        spaces = self.settings.concept_spaces
        return self._materials.concept_saes[self._roles[side], architecture, d_sae or spaces.d_sae, k or spaces.k]

    def siblings(self, role: str) -> dict[str, StackedClassifier]:
        """Networks of the architectures that are not the pair's, by architecture.

        Arguments:
            role: "source" or "target", as the pair's networks are trained.
        """
        self._need(Knowledge.SIBLINGS, "networks of other architectures")
        pair = (self._source.architecture, self._target.architecture)
        networks = self._materials.networks[getattr(self.settings, role)]
        return {name: stack for name, stack in networks.items() if name not in pair}

    def source_of(self, role: str) -> StackedClassifier:
        """Networks of the source's architecture that were trained in another role: `settings.sequence` names them."""
        return self._materials.networks[role][self._source.architecture]

    def labelled(self, per_class: int | None = None) -> Labelled:
        """Training images of the concept, with their label: the first `per_class` of a fixed order, or all."""
        self._need(Knowledge.LABELLED, "labelled images of the concept")
        found = self._materials.images_of((self.task.concept,))
        if per_class is None:
            return found
        order = torch.randperm(len(found.labels), generator=self.generator("few"))[:per_class].to(found.labels.device)
        return Labelled(found.images[order], found.labels[order])

    def source_images(self) -> Float[Tensor, "images 1 h w"]:
        """Training images of the source's own classes, the concept among them."""
        self._need(Knowledge.LABELLED, "images of the source's own classes")
        return self._materials.images_of(self.task.source_classes).images

    def _need(self, permission: Knowledge, what: str) -> None:
        if permission not in self._allowed:
            raise KnowledgeError(f"{self._asker}: asks for {what}, but declares tier {tier_name(self._allowed)}")
