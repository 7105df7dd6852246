"""What networks answer before and after an injection: the confusion, and the images whose answers change."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from saeflow.injection.task import Task

EXAMPLES = 8
"""Images of each kind that are kept."""


class Answers:
    """Answers of one variant's networks, counted over pairs and seeds.

    Arguments:
        labels: of the test images.
        n_classes: classes that a network can answer.
    """

    def __init__(self, labels: Int[Tensor, " n"], n_classes: int, task: Task) -> None:
        self._labels, self._n_classes, self._task = labels.cpu(), n_classes, task
        self._confusion = torch.zeros(n_classes**3, dtype=torch.int64)
        self._became_concept = torch.zeros(len(labels), dtype=torch.int64)
        self._n_networks = 0

    def add(self, before: Int[Tensor, "m n"], after: Int[Tensor, "m n"]) -> None:
        """Count the answers of m networks."""
        before, after = before.cpu(), after.cpu()
        keys = (self._labels * self._n_classes + before) * self._n_classes + after
        self._confusion += keys.flatten().bincount(minlength=self._n_classes**3)
        concept = self._task.concept
        self._became_concept += ((before != concept) & (after == concept)).sum(0)
        self._n_networks += len(before)

    def confusion(self) -> Iterator[dict[str, int]]:
        """`n` answers for each `label`, answer `before` and answer `after`, where there are any."""
        for key in self._confusion.nonzero().squeeze(1).tolist():
            rest, after = divmod(key, self._n_classes)
            label, before = divmod(rest, self._n_classes)
            yield {"label": label, "before": before, "after": after, "n": int(self._confusion[key])}

    def examples(self) -> Iterator[dict[str, Any]]:
        """Test images by `kind`, each with the `share` of networks that answer it with the concept only after:
        `won` and `missed`, images of the concept with the highest and the lowest share; `taken`, images of other
        classes with the highest."""
        shares = self._became_concept.double() / max(self._n_networks, 1)
        concept = self._labels == self._task.concept
        for kind, among, falling in (("won", concept, True), ("missed", concept, False), ("taken", ~concept, True)):
            numbers = among.nonzero().squeeze(1)
            order = shares[numbers].sort(descending=falling, stable=True).indices[:EXAMPLES]
            for image in numbers[order].tolist():
                if kind == "missed" or shares[image] > 0:
                    label, share = int(self._labels[image]), float(shares[image])
                    yield {"kind": kind, "image": image, "label": label, "share": share}
