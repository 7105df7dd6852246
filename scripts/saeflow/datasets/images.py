"""Image sets as arrays: scikit-learn's digits, and the sets with MNIST's layout."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from saeflow.config.images import N_CLASSES, Data, n_taken
from saeflow.datasets import files, published
from saeflow.datasets.files import DatasetError
from saeflow.reproduce import child_seed, write_arrays

_PARTS = ("images", "labels")
_SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True)
class ImageSplit:
    """Images and their labels."""

    images: UInt8[np.ndarray, "images 1 h w"] | Float32[np.ndarray, "images 1 h w"]
    """Bytes of 0 to 255, or numbers of 0 to 1."""
    labels: Int64[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> Self:
        """Some of the images, by slice, numbers or mask."""
        return type(self)(self.images[rows], self.labels[rows])

    def inputs(self) -> Float32[np.ndarray, "images 1 h w"]:
        """Images in [0, 1]."""
        if self.images.dtype == np.float32:
            return self.images
        return np.divide(self.images, np.float32(255), dtype=np.float32)


@dataclass(frozen=True)
class ImageDataset:
    """An image set with its splits."""

    name: str
    n_classes: int
    train: ImageSplit
    calibration: ImageSplit
    """Training images that no network is trained on; may be empty."""
    test: ImageSplit

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[-2:]

    def save(self, path: Path) -> None:
        """Write one uncompressed .npz; equal data is equal bytes."""
        arrays = {f"{name}_{part}": getattr(getattr(self, name), part) for name in _SPLITS for part in _PARTS}
        write_arrays(path, {"name": self.name, "n_classes": self.n_classes, **arrays})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Dataset from `save`.

        Raises:
            DatasetError: the file is missing, truncated or no such dataset.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                splits = [ImageSplit(*(archive[f"{name}_{part}"] for part in _PARTS)) for name in _SPLITS]
                name, n_classes = str(archive["name"]), int(archive["n_classes"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path}: no dataset of this project: {error}") from None
        return cls(name, n_classes, *splits)


def build(data: Data, *, seed: int = 0, folder: Path | str | None = None) -> ImageDataset:
    """Dataset that a study's section asks for.

    Arguments:
        seed: root of the draw that splits the digits.
        folder: where the files of a set with MNIST's layout lie, `data.data_dir` if not given (see `files.locate`).
    Raises:
        DatasetError: files are missing, damaged or not those that they should be.
    """
    if data.name == "digits":
        train, test = _digits(data.test_share, child_seed(seed, "dataset", "digits"))
        return ImageDataset("digits", N_CLASSES["digits"], *_calibration(train, data, seed), test)
    spec, folder = files.image_set(data.name), folder or data.data_dir
    if folder is None:
        raise DatasetError(f"dataset.data_dir: none given; {data.name} needs {', '.join(spec.downloads)}")
    n_classes = N_CLASSES[data.name]
    train_images, train_labels, test_images, test_labels = published.read(spec, files.locate(data.name, folder))
    train, calibration = _calibration(_split(train_images, train_labels, spec, n_classes), data, seed)
    return ImageDataset(data.name, n_classes, train, calibration, _split(test_images, test_labels, spec, n_classes))


def _calibration(train: ImageSplit, data: Data, seed: int) -> tuple[ImageSplit, ImageSplit]:
    """Training split without its calibration images, and those; all of it and none where no share is asked for."""
    if not data.calibration_share:
        return train, train[:0]
    return _divide(train, "calibration_share", data.calibration_share, child_seed(seed, "dataset", "calibration"))


def _divide(split: ImageSplit, key: str, share: float, seed: int) -> tuple[ImageSplit, ImageSplit]:
    """A split without a share of each class's images, and those; order kept."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(split), bool)
    for label in np.unique(split.labels):
        own = np.flatnonzero(split.labels == label)
        n = n_taken(f"dataset.{key}", share, int(label), len(own))
        taken[rng.permutation(own)[:n]] = True
    return split[~taken], split[taken]


def _split(images: np.ndarray, labels: np.ndarray, spec: files.ImageSet, n_classes: int) -> ImageSplit:
    """Upright images and labels from 0 on."""
    first, last, found = spec.first_label, spec.first_label + n_classes - 1, (labels.min(), labels.max())
    if found[0] < first or found[1] > last:
        raise DatasetError(f"{spec.folder}: labels {found[0]} to {found[1]} on file, expected {first} to {last}")
    upright = images.transpose(0, 2, 1) if spec.transposed else images
    return ImageSplit(np.ascontiguousarray(upright[:, None]), labels.astype(np.int64) - first)


def _digits(test_share: float, seed: int) -> tuple[ImageSplit, ImageSplit]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), scaled from 0-16 to [0, 1]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits = ImageSplit((bunch.images[:, None] / 16).astype(np.float32), bunch.target.astype(np.int64))
    return _divide(digits, "test_share", test_share, seed)
