"""Draw one picture per latent of an SAE, and a contact sheet of its live latents, from what the analysis wrote."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from saeflow.datasets.images import ImageDataset
from saeflow.publish.cards import Features, draw_cards
from saeflow.publish.cards import gallery as draw_gallery
from saeflow.rule import run


def main(*, dataset: Path, arrays: Path, table: Path, cards: Path, gallery: Path) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        arrays, table: .npz and .parquet of `analyze_features`.
        cards: folder that gets `latent-<index>.png` for every latent.
        gallery: .png of the contact sheet.
    """
    data, rows = ImageDataset.load(dataset), pq.read_table(table).to_pylist()
    first = rows[0]
    names = [str(first[name]) for name in ("architecture", "role", "hook_point", "variant")]
    with np.load(arrays, allow_pickle=False) as archive:
        features = Features(
            rows,
            dict(archive),
            data.train.inputs()[:, 0],
            data.train.labels,
            [str(label) for label in range(data.n_classes)],
            " · ".join([*names, f"seed {first['seed']}", f"SAE seed {first['sae_seed']}"]),
        )
    draw_cards(features, cards)
    draw_gallery(features).save(gallery)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
