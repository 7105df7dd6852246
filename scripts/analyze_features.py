"""Work out what every latent stands for, for all SAEs of one architecture, role and hook point.

For each SAE: a Parquet table with a row per latent (`saeflow.features.report.COLUMNS` says what the columns mean), a
JSON report with the same numbers, a summary and each latent's neighbours and top images, and the arrays that the
pictures are drawn from.
"""

import logging
from itertools import product
from pathlib import Path

import torch

from saeflow.activations import ActivationStore
from saeflow.config.images import Features
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.features import report
from saeflow.features.analysis import Context, Split, analyze
from saeflow.models import classifiers
from saeflow.reproduce import child_seed
from saeflow.rule import run
from saeflow.sae import formats

log = logging.getLogger(__name__)


def main(
    *,
    dataset: Path,
    weights: Path,
    train_stores: list[Path],
    test_stores: list[Path],
    saes: list[Path],
    tables: list[Path],
    reports: list[Path],
    arrays: list[Path],
    cfg: dict,
) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`.
        train_stores, test_stores: manifest.json of each store, in the order of the seeds.
        saes: cfg.json of each SAE, in the order seeds x variants x SAE seeds.
        tables, reports, arrays: files to write, in the order of the SAEs.
        cfg: `features` (section), `seeds`, `variants`, `sae_seeds`, `architecture`, `role`, `hook`, `seed`, `device`.
    """
    data, spec = ImageDataset.load(dataset), Features.model_validate(cfg["features"])
    device, hook = cfg["device"], cfg["hook"]
    networks = classifiers.load(weights, device, cfg["seeds"])
    keys = product(range(len(cfg["seeds"])), cfg["variants"], cfg["sae_seeds"])
    context, loaded = None, None
    for (i, variant, sae_seed), sae_path, *outputs in zip(keys, saes, tables, reports, arrays, strict=True):
        seed = cfg["seeds"][i]
        if loaded != seed:
            member, loaded = networks.member(i), seed
            (train, images), (test, _) = (
                _split(path, split, device)
                for path, split in ((train_stores[i], data.train), (test_stores[i], data.test))
            )
            # The stores of all seeds hold the same images in the same order.
            context = context or Context.of(train, test, data.n_classes)
        sae = formats.load(sae_path.parent, device)
        identity = {name: cfg[name] for name in ("architecture", "role")}
        identity |= {"hook_point": hook, "seed": seed, "variant": variant, "sae_seed": sae_seed}
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
        table_path, report_path, arrays_path = outputs
        report.write(
            result,
            identity,
            images,
            data.shape,
            table_path=table_path,
            report_path=report_path,
            arrays_path=arrays_path,
        )
        log.info("%s, seed %s, %s, SAE seed %s: %d latents", cfg["architecture"], seed, variant, sae_seed, sae.d_sae)


def _split(manifest: Path, split: ImageSplit, device: str) -> tuple[Split, torch.Tensor]:
    """Rows of a store with their images and labels, and the image index of each row."""
    store = ActivationStore.open(manifest)
    images = store.source()[:, store.source_columns.index("image")].long()
    inputs, labels = torch.from_numpy(split.inputs())[images], torch.from_numpy(split.labels)[images]
    return Split(store.rows(slice(None), device), inputs.to(device), labels.to(device)), images


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
