"""Features of SAEs on classifiers of images: what they respond to, what they do, in words where a rule holds.

`saeflow.features.report.COLUMNS` says what the columns mean. Beside the table: a JSON report with the same numbers, a
summary and each latent's neighbours and top images, and the arrays that the pictures are drawn from.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saeflow.activations import ActivationStore
from saeflow.config.images import Features
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.features import report
from saeflow.features.analyses import ANALYSES, Analyzed
from saeflow.features.analysis import Context, Split, analyze
from saeflow.models import classifiers
from saeflow.reproduce import child_seed
from saeflow.sae import formats


@ANALYSES.register("images")
def analyze_images(
    network: Sequence[Path],
    given: Sequence[Path],
    stores: Mapping[str, Sequence[Path]],
    metrics: Sequence[Path],
    saes: Sequence[Analyzed],
    cfg: Mapping[str, Any],
) -> Iterator[str]:
    """`saeflow.features.analysis.analyze` of each SAE on the images of both splits."""
    data, spec = ImageDataset.load(given[0]), Features.model_validate(cfg["features"])
    device, hook = cfg["device"], cfg["hook"]
    networks = classifiers.load(network[0], device, cfg["seeds"])
    context, loaded = None, None
    for one in saes:
        if loaded != one.member:
            member, loaded = networks.member(one.member), one.member
            (train, images), (test, _) = (
                _split(stores[name][one.member], split, device)
                for name, split in (("train", data.train), ("test", data.test))
            )
            # The stores of all members hold the same images in the same order.
            context = context or Context.of(train, test, data.n_classes)
        sae = formats.load(one.sae.parent, device)
        identity = cfg["members"][one.member] | {"variant": one.variant, "sae_seed": one.seed}
        result = analyze(
            sae,
            train,
            test,
            lambda x, member=member: member.values(x, (hook,))[hook][0],
            lambda v, member=member: member.run_from(hook, v[None])[0],
            context,
            spec,
            child_seed(cfg["seed"], "features", *identity.values()),
        )
        report_path, arrays_path = one.beside
        report.write(
            result,
            identity,
            images,
            data.shape,
            table_path=one.features,
            report_path=report_path,
            arrays_path=arrays_path,
        )
        yield f"{', '.join(map(str, identity.values()))}: {sae.d_sae} latents"


def _split(manifest: Path, split: ImageSplit, device: str) -> tuple[Split, torch.Tensor]:
    """Rows of a store with their images and labels, and the image index of each row."""
    store = ActivationStore.open(manifest)
    images = store.source()[:, store.source_columns.index("image")].long()
    inputs, labels = torch.from_numpy(split.inputs())[images], torch.from_numpy(split.labels)[images]
    return Split(store.rows(slice(None), device), inputs.to(device), labels.to(device)), images
