"""Training of all members of one architecture at once."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeflow.config.images import Classifiers
from saeflow.config.sections import Architecture
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.models.adamw import AdamW
from saeflow.models.classifiers import ClassifierError, StackedClassifier, concatenate
from saeflow.reproduce import child_seed

STACK_BELOW = 500_000
"""Parameters of a member from which on a CPU trains one after another: no slower than stacked there, in less memory.

Measured on one thread (benchmarks/stacked_classifiers.py), stacked is so many times as fast, with 3 and 12 members:
1.9 to 2.1 and 2.7 to 4.0 at 10k parameters, 1.7 and 2.1 at 40k, 1.3 to 1.4 and 1.3 to 1.6 at 50k to 130k, 1.1 and 0.9
to 1.1 at 200k to 330k, 1.0 to 1.1 and 0.85 to 1.0 from 575k on.
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One network to train."""

    role: str
    classes: tuple[int, ...]
    """Labels whose images it is trained on."""
    seed: int


@dataclass(frozen=True)
class Accuracy:
    """How often a network answers right, on images of its own classes."""

    train: float
    test: float
    test_by_class: dict[int, float]


class Trained(NamedTuple):
    """Networks in the order of the members, and how well each does."""

    classifier: StackedClassifier
    accuracies: list[Accuracy]


def train(
    architecture: Architecture,
    dataset: ImageDataset,
    members: Sequence[Member],
    settings: Classifiers,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    stacked: bool | None = None,
) -> Trained:
    """Train members of one architecture, each on the training images of its own classes.

    Every member takes as many steps as `settings.epochs` passes over the whole training split have, whatever its
    classes, in batches of its own images: one random permutation of them after another. So a member with four of ten
    classes sees each of its images about 2.5 times as often. Loss: cross-entropy over all classes; AdamW, step size
    learning_rate / 2 * (1 + cos(pi t / T)).

    A member depends on its own classes and seed only, never on its companions: on one CPU thread its weights are
    those of training alone to the bit, elsewhere to rounding.

    Arguments:
        seed: root of all draws.
        stacked: all members in one pass, or one after another; None takes what is faster (`STACK_BELOW`; on a GPU
            always stacked).
    Raises:
        ClassifierError: no training image has a class that a member asks for, or the training diverged.
    """
    for member in members:
        _check_classes(member, dataset)
    layers = settings.layers_of(architecture)
    fresh = StackedClassifier(architecture, dataset.shape, dataset.n_classes, layers=layers)
    n_parameters = sum(parameter.numel() for parameter in fresh.parameters())
    if stacked is None:
        stacked = torch.device(device).type != "cpu" or n_parameters < STACK_BELOW
    how = "stacked" if stacked else "one after another"
    log.info("%s: %d members of %d parameters, %s", architecture, len(members), n_parameters, how)
    images, test_images = (torch.from_numpy(split.inputs()).to(device) for split in (dataset.train, dataset.test))
    labels = torch.from_numpy(dataset.train.labels).to(device)
    groups = [list(members)] if stacked else [[member] for member in members]
    classifier = concatenate([_fit(architecture, dataset, g, images, labels, settings, seed) for g in groups])
    answers = (classifier.predict(x, batch_size=512).argmax(-1).cpu().numpy() for x in (images, test_images))
    accuracies = [_accuracy(member, dataset, *own) for member, *own in zip(members, *answers, strict=True)]
    return Trained(classifier, accuracies)


def _fit(
    architecture: Architecture,
    dataset: ImageDataset,
    members: Sequence[Member],
    images: Float[Tensor, "images 1 h w"],
    labels: Int[Tensor, " images"],
    settings: Classifiers,
    seed: int,
) -> StackedClassifier:
    """Train members stacked."""
    n_steps = math.ceil(settings.epochs * len(labels) / settings.batch_size)
    names = [(seed, "classifier", architecture, *member.classes, "seed", member.seed) for member in members]
    classifier = StackedClassifier(
        architecture, dataset.shape, dataset.n_classes, len(members), settings.layers_of(architecture)
    )
    classifier.initialize([child_seed(*name, "weights") for name in names]).to(images.device)
    own = [np.isin(dataset.train.labels, member.classes) for member in members]
    order = [
        _order(mask, n_steps * settings.batch_size, child_seed(*name, "order"))
        for mask, name in zip(own, names, strict=True)
    ]
    batches = torch.stack(order).unflatten(1, (n_steps, settings.batch_size)).to(images.device)
    parameters = list(classifier.parameters())
    optimizer = AdamW(parameters, settings.weight_decay)
    for step in range(n_steps):
        batch = batches[:, step]
        logits = classifier(images[batch])
        # Summed over members, so that no member's gradient knows how many there are.
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="sum")
        gradients = torch.autograd.grad(loss / settings.batch_size, parameters)
        optimizer.step(gradients, settings.learning_rate / 2 * (1 + math.cos(math.pi * step / n_steps)))
        if step % max(1, n_steps // 10) == 0:
            log.info("step %d of %d, mean loss %.4g", step, n_steps, loss.item() / batch.numel())
    for i, member in enumerate(members):
        if not all(parameter[i].isfinite().all() for parameter in classifier.parameters()):
            raise ClassifierError(
                f"{architecture}, role '{member.role}', seed {member.seed}: training diverged; "
                f"lower classifiers.learning_rate (now {settings.learning_rate:g})"
            )
    return classifier


def _check_classes(member: Member, dataset: ImageDataset) -> None:
    """Every class must have a training image."""
    there = np.unique(dataset.train.labels).tolist()
    absent = sorted(set(member.classes) - set(there))
    if absent:
        raise ClassifierError(
            f"classifiers.roles.{member.role}.classes: no training image of {dataset.name} has class "
            f"{', '.join(map(str, absent))}; it has {', '.join(map(str, there))}"
        )


def _order(own: np.ndarray, n: int, seed: int) -> Int[Tensor, " n"]:
    """Numbers of the first `n` images that a member sees: random passes over those where `own` is true."""
    numbers = torch.from_numpy(np.flatnonzero(own).astype(np.int32))
    generator = torch.Generator().manual_seed(seed)
    passes = [numbers[torch.randperm(len(numbers), generator=generator)] for _ in range(math.ceil(n / len(numbers)))]
    return torch.cat(passes)[:n]


def _accuracy(
    member: Member,
    dataset: ImageDataset,
    train_answers: Int[np.ndarray, " train"],
    test_answers: Int[np.ndarray, " test"],
) -> Accuracy:
    """Accuracy of a member on the images of its own classes."""

    def share_right(split: ImageSplit, answers: np.ndarray, *classes: int) -> float:
        asked = np.isin(split.labels, classes)
        return float((answers[asked] == split.labels[asked]).mean())

    accuracy = Accuracy(
        train=share_right(dataset.train, train_answers, *member.classes),
        test=share_right(dataset.test, test_answers, *member.classes),
        test_by_class={label: share_right(dataset.test, test_answers, label) for label in member.classes},
    )
    log.info("role %s, seed %d: test accuracy %.4f", member.role, member.seed, accuracy.test)
    return accuracy
