"""What the feature explorer shows: an index of each SAE's features, and their pages in chunks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Int

from saeflow.datasets.images import ImageSplit
from saeflow.publish.site import data

CHUNK = 64
"""Features of one file of pages."""
TOP = 12
"""Examples of one page, at most."""
IMAGES = 64
"""Images of one file of images."""
DIGITS = 4
"""Significant digits of floats, one more than pages show: these files are most of a site."""
IDENTITY = ["architecture", "role", "hook_point", "seed", "variant", "sae_seed"]
FACTS = [
    *("activation_rate", "test_activation_rate", "mean_active", "max_active", "label", "label_share"),
    *("n_effective_labels", "promotes", "suppresses", "effect_size", "effect_size_random", "flip_rate"),
    *("decoder_norm", "encoder_cosine", "auroc_train", "auroc", "auroc_null_p95", "p_value", "precision", "recall"),
]
"""Columns of the table of features that stand on a feature's page."""
PATTERNS = ("haufe", "gradient", "gradient_input")


@runtime_checkable
class Features(Protocol):
    """Features of one SAE, of whatever kind."""

    kind: str
    """What its pages show, as the browser's code calls it."""

    @property
    def name(self) -> str:
        """Folder of the SAE below `features/`, which the pages' addresses name it by."""

    def __len__(self) -> int:
        """Number of latents."""

    def index(self) -> dict[str, list[Any]]:
        """A value per feature for each column of the explorer."""

    def pages(self) -> Iterator[dict[str, Any]]:
        """Content of each chunk: names of the facts, pages of its features, and what they share."""


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one SAE on images, as `analyze_features` writes them.

    Arguments:
        table: a row per latent.
        arrays: the arrays behind the pictures.
        n_test: images of the test split, on which hypotheses are tested.
    """

    kind = "images"
    table: pd.DataFrame
    arrays: Mapping[str, np.ndarray]
    n_test: int

    def __len__(self) -> int:
        return len(self.table)

    @property
    def name(self) -> str:
        row = self.table.iloc[0]
        model = f"{row.architecture}-{row.role}-s{row.seed}"
        return f"{model}/{row.hook_point}/{row.variant}-s{row.sae_seed}"

    def index(self) -> dict[str, list[Any]]:
        t = self.table
        return {
            "density": t.test_activation_rate.tolist(),
            "max": t.max_active.tolist(),
            "score": t.auroc.tolist(),
            "dead": t.dead.astype(int).tolist(),
            "says": t.hypothesis.tolist(),
        }

    @property
    def shown(self) -> Int[np.ndarray, " n"]:
        """Images that its pages show."""
        top = self.arrays["top_images"][:, :TOP]
        return np.unique(top[top >= 0])

    def pages(self) -> Iterator[dict[str, Any]]:
        a = self.arrays
        rows = self.table[[*FACTS, "dead", "hypothesis"]].to_dict("records")
        for start in range(0, len(self.table), CHUNK):
            yield {
                "shape": a["image_shape"],
                "classes": a["label_rows"],
                "n_test": self.n_test,
                "facts": FACTS,
                "features": [self._page(i, rows[i]) for i in range(start, min(start + CHUNK, len(self.table)))],
            }

    def _page(self, i: int, row: Mapping[str, Any]) -> dict[str, Any]:
        a = self.arrays
        tops = zip(a["top_images"][i, :TOP].tolist(), a["top_values"][i, :TOP].tolist(), strict=True)
        return {
            "facts": [row[name] for name in FACTS],
            "dead": row["dead"],
            "says": row["hypothesis"],
            "top": [[image, value] for image, value in tops if image >= 0],
            "patterns": {name: _signed(a[f"pattern_{name}"][i]) for name in PATTERNS},
            "labels": a["label_shares"][i],
            "ablation": a["ablation"][i],
            "addition": a["addition"][i],
            "neighbours": list(zip(a["neighbours"][i].tolist(), a["cosines"][i].tolist(), strict=True)),
        }


def write(saes: Sequence[Features], folder: Path, images: ImageSplit | None = None) -> None:
    """Write `index.js` over all SAEs, below a folder for each its own index and its pages, and the images shown.

    Arguments:
        images: of the training split; needed for SAEs on images.
    """
    listed = [{"name": sae.name, "n": len(sae), "kind": sae.kind} for sae in saes]
    data.write(folder / "index.js", "features", {"chunk": CHUNK, "images": IMAGES, "saes": listed})
    for sae in saes:
        data.write(folder / sae.name / "index.js", f"features/{sae.name}", sae.index(), DIGITS)
        for k, chunk in enumerate(sae.pages()):
            data.write(folder / sae.name / f"{k}.js", f"features/{sae.name}/{k}", chunk, DIGITS)
    if shown := [sae.shown for sae in saes if isinstance(sae, ImageFeatures)]:
        numbers = np.unique(np.concatenate(shown))
        for k in np.unique(numbers // IMAGES).tolist():
            packed = pictures(images, numbers[numbers // IMAGES == k])
            data.write(folder / "images" / f"{k}.js", f"features/images/{k}", packed)


def pictures(images: ImageSplit, numbers: Int[np.ndarray, " n"]) -> dict[int, tuple[str, int]]:
    """Pixels, 0 to 255 in base64, and label of some images, by number."""
    chosen = images[numbers]
    pixels = np.round(255 * chosen.inputs()).astype(np.uint8)
    return {
        i: (data.packed(x), label) for i, x, label in zip(numbers.tolist(), pixels, chosen.labels.tolist(), strict=True)
    }


def _signed(values: np.ndarray) -> str:
    """A pattern in 127 steps to either side, its largest value the last."""
    largest = np.abs(values).max()
    return data.packed(np.round(127 * values / largest if largest else values).astype(np.int8))
