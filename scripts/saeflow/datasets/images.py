"""Image sets as arrays: scikit-learn's digits, and the sets with MNIST's layout."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from saeflow import config
from saeflow.datasets import files, idx
from saeflow.datasets.files import DatasetError
from saeflow.reproduce import child_seed

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class ImageSplit:
    """Images and their labels."""

    images: UInt8[np.ndarray, "images 1 h w"] | Float32[np.ndarray, "images 1 h w"]
    """Bytes of 0 to 255, or numbers of 0 to 1."""
    labels: Int64[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self) -> Float32[np.ndarray, "images 1 h w"]:
        """Images in [0, 1]."""
        if self.images.dtype == np.float32:
            return self.images
        return np.divide(self.images, np.float32(255), dtype=np.float32)


@dataclass(frozen=True)
class ImageDataset:
    """An image set with its two splits."""

    name: str
    n_classes: int
    train: ImageSplit
    test: ImageSplit

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[-2:]

    def save(self, path: Path) -> None:
        """Write one uncompressed .npz; equal data is equal bytes (numpy stamps its entries with 1980)."""
        arrays = (self.train.images, self.train.labels, self.test.images, self.test.labels)
        with path.open("wb") as file:
            np.savez(file, name=self.name, n_classes=self.n_classes, **dict(zip(_ARRAYS, arrays, strict=True)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Dataset from `save`.

        Raises:
            DatasetError: the file is missing, truncated or no such dataset.
        """
        try:
            with np.load(path) as archive:
                images, labels, test_images, test_labels = (archive[name] for name in _ARRAYS)
                name, n_classes = str(archive["name"]), int(archive["n_classes"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path}: no dataset of this project: {error}") from None
        return cls(name, n_classes, ImageSplit(images, labels), ImageSplit(test_images, test_labels))


def build(data: config.Data, *, seed: int = 0, folder: Path | str | None = None) -> ImageDataset:
    """Dataset that a study's section asks for.

    Arguments:
        seed: root of the draw that splits the digits.
        folder: where the files of a set with MNIST's layout lie, `data.data_dir` if not given (see `files.find`).
    Raises:
        DatasetError: files are missing, damaged or not those that they should be; or a split would lack a class.
    """
    if data.name == "digits":
        return _digits(data.test_share, child_seed(seed, "dataset", "digits"))
    spec, folder = files.image_set(data.name), folder or data.data_dir
    if folder is None:
        raise DatasetError(f"dataset.data_dir: none given; {data.name} needs {', '.join(spec.downloads)}")
    n_classes = config.N_CLASSES[data.name]
    train_images, train_labels, test_images, test_labels = idx.read(spec, files.find(data.name, folder))
    return ImageDataset(
        data.name,
        n_classes,
        train=_split(train_images, train_labels, spec, n_classes),
        test=_split(test_images, test_labels, spec, n_classes),
    )


def _split(images: np.ndarray, labels: np.ndarray, spec: files.ImageSet, n_classes: int) -> ImageSplit:
    """Upright images and labels from 0 on."""
    first, last, found = spec.first_label, spec.first_label + n_classes - 1, (labels.min(), labels.max())
    if found[0] < first or found[1] > last:
        raise DatasetError(f"{spec.folder}: labels {found[0]} to {found[1]} on file, expected {first} to {last}")
    upright = images.transpose(0, 2, 1) if spec.transposed else images
    return ImageSplit(np.ascontiguousarray(upright[:, None]), labels.astype(np.int64) - first)


def _digits(test_share: float, seed: int) -> ImageDataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), scaled from 0-16 to [0, 1]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = (bunch.images[:, None] / 16).astype(np.float32), bunch.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        n_test = round(test_share * len(own))
        if not 0 < n_test < len(own):
            raise DatasetError(
                f"dataset.test_share: {test_share:g} puts {n_test} of {len(own)} images of class {label} into the test "
                "split; each split needs one"
            )
        is_test[rng.permutation(own)[:n_test]] = True
    train, test = (ImageSplit(images[rows], labels[rows]) for rows in (~is_test, is_test))
    return ImageDataset("digits", len(np.unique(labels)), train, test)
