"""Image sets as arrays."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import build_dataset
from saeflow.config.images import Data
from saeflow.datasets import images
from saeflow.datasets.files import DatasetError
from saeflow.datasets.images import ImageDataset
from saeflow.reproduce import sha256_file


def rows(array):
    return sorted(map(bytes, np.ascontiguousarray(array, np.float32)))


def test_digits_are_all_there_split_by_class_and_scaled_to_1():
    dataset = images.build(Data(test_share=0.25), seed=0)
    reference = load_digits()
    both = np.concatenate([dataset.train.inputs(), dataset.test.inputs()])
    assert rows(16 * both[:, 0]) == rows(reference.images)
    assert (both.min(), both.max()) == (0, 1)
    held_out, all_of_them = np.bincount(dataset.test.labels), np.bincount(reference.target)
    assert abs(held_out - 0.25 * all_of_them).max() <= 0.5
    assert (dataset.n_classes, dataset.shape) == (10, (8, 8))


def test_the_split_of_digits_follows_the_seed():
    splits = [images.build(Data(), seed=seed).test.images for seed in (0, 0, 1)]
    np.testing.assert_array_equal(splits[0], splits[1])
    assert rows(splits[0]) != rows(splits[2])


def test_the_study_knows_how_many_training_images_each_class_has():
    data = Data(test_share=0.3, calibration_share=0.2)
    dataset = images.build(data)
    assert data.training_images == tuple(np.bincount(dataset.train.labels))


def test_calibration_images_are_a_share_of_each_class_taken_from_the_training_split():
    whole, parted = (images.build(Data(calibration_share=share), seed=0) for share in (0, 0.2))
    assert len(whole.calibration) == 0
    taken, before = (np.bincount(split.labels) for split in (parted.calibration, whole.train))
    assert abs(taken - 0.2 * before).max() <= 0.5
    both = np.concatenate([parted.train.images, parted.calibration.images])
    assert rows(both) == rows(whole.train.images)
    np.testing.assert_array_equal(parted.test.images, whole.test.images)


def test_equal_data_is_equal_bytes_and_comes_back_as_it_was(tmp_path):
    cfg = {"dataset": Data().model_dump(mode="json"), "seed": 3}
    for name in ("a.npz", "b.npz"):
        build_dataset.main(raw=[], dataset=tmp_path / name, cfg=cfg)
    assert sha256_file(tmp_path / "a.npz") == sha256_file(tmp_path / "b.npz")
    built, loaded = images.build(Data(), seed=3), ImageDataset.load(tmp_path / "a.npz")
    assert (loaded.name, loaded.n_classes, loaded.shape) == ("digits", 10, (8, 8))
    for split in ("train", "calibration", "test"):
        np.testing.assert_array_equal(getattr(loaded, split).images, getattr(built, split).images)
        np.testing.assert_array_equal(getattr(loaded, split).labels, getattr(built, split).labels)


def test_a_file_that_is_no_dataset_is_named(tmp_path):
    path = tmp_path / "dataset.npz"
    images.build(Data()).save(path)
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", x=1)
    for content in (whole[: len(whole) // 2], b"", b"text", (tmp_path / "other.npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"dataset\.npz: no dataset of this project"):
            ImageDataset.load(path)
    with pytest.raises(DatasetError, match=r"absent\.npz: no dataset of this project"):
        ImageDataset.load(tmp_path / "absent.npz")


def test_mnist_has_its_published_class_counts(data_dir):
    """Class counts: as in the test split's published histogram (980 zeros, 1135 ones, ...)."""
    dataset = images.build(Data(name="mnist", data_dir=str(data_dir / "torchvision")))
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert np.bincount(dataset.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Mean of the training pixels: 0.1307, the constant with which MNIST is usually standardized.
    assert dataset.train.images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert (dataset.test.inputs().min(), dataset.test.inputs().max()) == (0, 1)
