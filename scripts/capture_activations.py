"""Capture activations: one pass of each split through all seeds of an architecture and role, every hook point at once.

Each store holds one seed, hook point and split; row i is image i of that split, all classes included. With several jobs
per network, each writes its own part of every store, from its share of the images.
"""

from contextlib import ExitStack
from itertools import product
from pathlib import Path

import torch

from saeflow.activations import Part, PartWriter, batches_of, rows_of, write_manifest
from saeflow.config.images import Activations
from saeflow.datasets.images import ImageDataset
from saeflow.models import classifiers
from saeflow.rule import run

SPLITS = ("train", "test")


def main(*, dataset: Path, weights: Path, parts: list[Path], manifests: list[Path], cfg: dict) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`.
        parts: folder of this job's part of each store, in the order seeds x hook points x splits.
        manifests: manifest.json of each store, in that order, if this job writes the whole of them; else none.
        cfg: `activations` (section), `seeds`, `device`, and with several jobs `shard`, the number of this one.
    Raises:
        ClassifierError: a seed that the weights do not hold, or a hook point that the architecture does not have.
    """
    data, settings = ImageDataset.load(dataset), Activations.model_validate(cfg["activations"])
    role = classifiers.describe(weights)["role"]
    classifier = classifiers.load(weights, cfg["device"], cfg["seeds"])
    folders = dict(zip(product(cfg["seeds"], settings.hook_points, SPLITS), parts, strict=True))
    for split in SPLITS:
        images = torch.from_numpy(getattr(data, split).inputs())
        own = rows_of(int(cfg.get("shard", 0)), settings.shards, len(images), settings.chunk_rows)
        with ExitStack() as stack:
            writers = {}
            for i, seed in enumerate(cfg["seeds"]):
                for hook in settings.hook_points:
                    writer = PartWriter(
                        folders[seed, hook, split],
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
            for batch, kept in batches_of(own, len(images), settings.batch_size):
                rows = torch.arange(batch.start, batch.stop)
                values = classifier.values(images[rows].to(classifier.device), settings.hook_points)
                for (i, hook), writer in writers.items():
                    writer.append(values[hook][i][kept], rows[kept])
    for manifest, part in zip(manifests, parts, strict=False):
        write_manifest(manifest.parent, [Part.read(part)])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
