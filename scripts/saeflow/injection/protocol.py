"""The guard: the only way for a method to reach images, networks and statistics of a study."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.config.injection import Injection
from saeflow.injection.knowledge import Knowledge, KnowledgeError, tier_name
from saeflow.injection.materials import Labelled, Materials
from saeflow.injection.task import Task
from saeflow.models.classifiers import StackedClassifier
from saeflow.reproduce import child_seed
from saeflow.sae.architectures import SparseAutoencoder

T = TypeVar("T")


class Guard:
    """What one method sees of one pair: exactly what its tier allows.

    Every method but `seed`, `generator`, `activations`, `once` and `once_for_pair` raises `KnowledgeError` without its
    permission. The networks' weights are open to all tiers.

    Arguments:
        materials: what the study has.
        allowed: what the method declares.
        asker: the method's name, for errors.
        source, target: the stacks of the pair, one member per seed.
        draws: the name of its draws and of what it keeps from pair to pair; the asker's if not given.
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
        draws: str | None = None,
        roles: tuple[str, str] | None = None,
        drop_concept: bool = False,
    ) -> None:
        self._materials, self._allowed, self._asker, self._draws = materials, allowed, asker, draws or asker
        self._source, self._target, self._roles = source, target, roles or materials.roles()
        self.drop_concept = drop_concept

    @property
    def task(self) -> Task:
        return self._materials.task

    @property
    def settings(self) -> Injection:
        """The study's section."""
        return self._materials.settings

    @property
    def device(self) -> torch.device | str:
        return self._materials.device

    def seed(self, *names: object) -> int:
        """Seed of one named draw of this method, the same for all pairs."""
        return child_seed(self._materials.seed, "injection", self._draws, *names)

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
        return self._kept((network,), (name,), make)

    def once_for_pair(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returns, made once for a name and the pair, and remembered for variants of the same draws."""
        return self._kept((self._source, self._target), (name, self.drop_concept), make)

    def _kept(self, networks: tuple[StackedClassifier, ...], name: tuple, make: Callable[[], T]) -> T:
        key = self._draws, self._allowed, name, tuple(map(id, networks))
        if key not in self._materials.remembered:
            # The networks are kept beside it, so that no other can come to live at their addresses.
            self._materials.remembered[key] = networks, make()
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
        if not self.drop_concept:
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
