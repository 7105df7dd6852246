"""What networks read, each kind behind one interface: batches in a fixed order, and where each row comes from.

The order of the rows, and the batches that they are computed in, do not depend on how many jobs share the work.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from saeflow.datasets.batch import Batch
from saeflow.registry import Registry


class Input(ABC):
    """Two splits of images or of text: `splits[0]` is trained on, `splits[1]` held out."""

    splits: ClassVar[tuple[str, str]]
    columns: ClassVar[tuple[str, ...]]
    """What the source of a row says."""

    @classmethod
    @abstractmethod
    def open(cls, files: Sequence[Path]) -> Self:
        """The input of the files that its rules build."""

    @abstractmethod
    def batches(self, split: str, part: int, n_parts: int, *, batch_size: int, chunk_rows: int) -> Iterator[Batch]:
        """Batches that hold a part's rows: whole chunks of a store, and whole batches of the network.

        A batch across the border of two parts is given to both, whole: a matrix product may round a row otherwise in
        other company.

        Arguments:
            part: number of the part among `n_parts`.
            batch_size: items at a time.
            chunk_rows: rows of a chunk of the store.
        """

    @abstractmethod
    def metadata(self, split: str) -> dict[str, Any]:
        """What a store says of the input."""


INPUTS: Registry[type[Input]] = Registry("saeflow.datasets.inputs")
"""Kinds of input, a module of its name each."""
