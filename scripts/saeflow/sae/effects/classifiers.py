"""Classifiers: the logits of each image with the reconstruction in place of its activations."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saeflow.activations import ActivationStore
from saeflow.datasets.images import ImageDataset
from saeflow.models import classifiers
from saeflow.sae.effects import EFFECTS, Saes
from saeflow.sae.metrics import evaluate


@EFFECTS.register("classifiers")
def measure(
    network: Sequence[Path],
    given: Sequence[Path],
    stores: Sequence[ActivationStore],
    saes: Sequence[Saes],
    cfg: Mapping[str, Any],
) -> Iterator[tuple[int, tuple[str, int], dict[str, Any]]]:
    """Reconstruction, sparsity, accuracy and KL of each SAE on the test images."""
    labels = torch.from_numpy(ImageDataset.load(given[0]).test.labels)
    networks = classifiers.load(network[0], cfg["device"], cfg["seeds"])
    for i, (store, of_member) in enumerate(zip(stores, saes, strict=True)):
        member = networks.member(i)
        shown = labels[store.source()[:, store.source_columns.index("image")].long()]
        for key, sae in of_member.items():
            yield (
                i,
                key,
                evaluate(
                    sae,
                    store.rows(slice(None), cfg["device"]),
                    logits=lambda x, member=member: member.run_from(cfg["hook"], x[None])[0],
                    labels=shown,
                ),
            )
