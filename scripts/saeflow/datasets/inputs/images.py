"""Images as an input: a row is an image of the split, all classes included."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from saeflow.activations.parts import batches_of, rows_of
from saeflow.datasets.batch import Batch
from saeflow.datasets.images import ImageDataset
from saeflow.datasets.inputs import INPUTS, Input


@INPUTS.register("images")
class Images(Input):
    """The .npz of `build_dataset`."""

    splits = ("train", "test")
    columns = ("image",)

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    @classmethod
    def open(cls, files: Sequence[Path]) -> Self:
        return cls(ImageDataset.load(files[0]))

    def batches(self, split: str, part: int, n_parts: int, *, batch_size: int, chunk_rows: int) -> Iterator[Batch]:
        images = torch.from_numpy(getattr(self.dataset, split).inputs())
        own = rows_of(part, n_parts, len(images), chunk_rows)
        for batch, kept in batches_of(own, len(images), batch_size):
            numbers = torch.arange(batch.start, batch.stop)
            yield Batch(images[numbers], torch.arange(len(numbers))[kept], numbers[kept][:, None])

    def metadata(self, split: str) -> dict[str, Any]:
        return {"dataset": self.dataset.name, "split": split}
