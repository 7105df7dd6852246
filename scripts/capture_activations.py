"""Capture activations: one pass of each split through all seeds of an architecture and role, every hook point at once.

Each store holds one seed, hook point and split; row i is image i of that split, all classes included.
"""

from contextlib import ExitStack
from itertools import product
from pathlib import Path

import torch

from saeflow import config
from saeflow.activations import ActivationStore
from saeflow.datasets.images import ImageDataset
from saeflow.models import classifiers
from saeflow.rule import run

SPLITS = ("train", "test")


def main(*, dataset: Path, weights: Path, manifests: list[Path], cfg: dict) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`.
        manifests: manifest.json of each store to write, in the order seeds x hook points x splits.
        cfg: `activations` (section), `seeds`, `device`.
    Raises:
        ClassifierError: a seed that the weights do not hold, or a hook point that the architecture does not have.
    """
    data, settings = ImageDataset.load(dataset), config.Activations.model_validate(cfg["activations"])
    role = classifiers.describe(weights)["role"]
    classifier = classifiers.load(weights, cfg["device"], cfg["seeds"])
    stores = dict(zip(product(cfg["seeds"], settings.hook_points, SPLITS), manifests, strict=True))
    for split in SPLITS:
        images = torch.from_numpy(getattr(data, split).inputs())
        with ExitStack() as stack:
            writers = {}
            for i, seed in enumerate(cfg["seeds"]):
                for hook in settings.hook_points:
                    writer = ActivationStore.create(
                        stores[seed, hook, split].parent,
                        d=classifier.width(hook),
                        dtype=settings.dtype,
                        chunk_rows=settings.chunk_rows,
                        source_columns=("image",),
                        metadata={
                            "dataset": data.name,
                            "split": split,
                            "architecture": classifier.architecture,
                            "role": role,
                            "seed": seed,
                            "hook_point": classifier.resolve(hook),
                        },
                    )
                    writers[i, hook] = stack.enter_context(writer)
            for rows in torch.arange(len(images)).split(settings.batch_size):
                values = classifier.run(images[rows].to(classifier.device), settings.hook_points)[1]
                for (i, hook), writer in writers.items():
                    writer.append(values[hook][i], rows)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
