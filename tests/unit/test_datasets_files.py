"""Finding, checking and downloading the files of an image set, and reading the IDX format."""

import gzip
import hashlib
import http.server
import os
import struct
import threading
import zipfile
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

import download_dataset
from saeflow import config
from saeflow.datasets import files, idx, images
from saeflow.datasets.files import DatasetError, ImageSet

SIZES = (30, 20)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (n, 28, 28), np.uint8) for n in SIZES]
LABELS = [np.arange(n, dtype=np.uint8) % 10 for n in SIZES]


def encoded(array):
    """An array of bytes in the IDX format."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.tobytes()


def contents(spec, first_label=0):
    """Unpacked content of each part, by name."""
    arrays = [array for split in zip(IMAGES, LABELS, strict=True) for array in split]
    return {part: encoded(a if a.ndim == 3 else a + first_label) for part, a in zip(spec.parts, arrays, strict=True)}


@pytest.fixture
def tiny(monkeypatch):
    """MNIST in small: packed content by file name, known under the name `mnist`."""
    plain = contents(ImageSet("MNIST", (), {}))
    packed = {f"{part}.gz": gzip.compress(content, mtime=0) for part, content in plain.items()}
    digests = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in packed.items()}
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", ImageSet("MNIST", (), digests, sizes=SIZES))
    return packed


def write(folder, named):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in named.items():
        (folder / name).write_bytes(content)


def build(folder, name="mnist"):
    return images.build(config.Data(name=name, data_dir=str(folder)))


@contextmanager
def without_privileges():
    """Run as nobody, where the tests run as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def mirror(tmp_path):
    """A web server of one folder; gives the folder and its URL."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if "cut" not in self.path:
                return super().do_GET()
            # Promises more than it sends, as a connection that breaks does.
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            return self.wfile.write(b"x" * 10)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("layout", ["MNIST/raw", "MNIST", "raw", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_every_layout_of_a_data_folder_gives_the_same_images(tmp_path, tiny, layout, packed):
    write(tmp_path / layout, tiny if packed else {n[:-3]: gzip.decompress(c) for n, c in tiny.items()})
    dataset = build(tmp_path)
    assert (dataset.n_classes, dataset.shape) == (10, (28, 28))
    for split, array, labels in zip((dataset.train, dataset.test), IMAGES, LABELS, strict=True):
        np.testing.assert_array_equal(split.images[:, 0], array)
        np.testing.assert_array_equal(split.labels, labels)


def test_a_packed_file_is_taken_before_the_unpacked_one(tmp_path, tiny):
    write(tmp_path, tiny | {name[:-3]: b"" for name in tiny})
    assert [path.name for path in files.find("mnist", tmp_path)] == list(tiny)


def test_a_truncated_file_is_named_with_its_expected_digest(tmp_path, tiny):
    name = "t10k-images-idx3-ubyte.gz"
    write(tmp_path, tiny | {name: tiny[name][:-100]})
    with pytest.raises(DatasetError) as error:
        build(tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert "truncated" in str(error.value)
    assert hashlib.sha256(tiny[name]).hexdigest() in str(error.value)


def test_another_set_s_file_is_named_with_its_expected_digest(tmp_path, tiny):
    name = "train-labels-idx1-ubyte.gz"
    write(tmp_path, tiny | {name: gzip.compress(encoded(LABELS[0][::-1]))})
    with pytest.raises(DatasetError, match=hashlib.sha256(tiny[name]).hexdigest()):
        build(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(IMAGES[0])[:-1], "23535 bytes unpacked, expected 23536: truncated"),
        (encoded(IMAGES[0])[:9], "9 bytes, not even an IDX header of 16"),
        (encoded(LABELS[0]) + bytes(99), "magic number 0x00000801, expected 0x00000803"),
        (encoded(IMAGES[1]), r"sizes \(20, 28, 28\), expected \(30, 28, 28\)"),
    ],
)
def test_an_unpacked_file_is_held_to_its_header_and_length(tmp_path, tiny, content, message):
    plain = {name[:-3]: gzip.decompress(packed) for name, packed in tiny.items()}
    write(tmp_path, plain | {"train-images-idx3-ubyte": content})
    with pytest.raises(DatasetError, match=f"train-images-idx3-ubyte: {message}"):
        build(tmp_path)


def test_a_truncated_gz_of_unknown_digest_is_named(tmp_path, monkeypatch, tiny):
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", ImageSet("MNIST", (), {}, sizes=SIZES))
    write(tmp_path, tiny | {"train-images-idx3-ubyte.gz": tiny["train-images-idx3-ubyte.gz"][:-9]})
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz: cannot be read, or is truncated"):
        build(tmp_path)


def test_a_data_folder_that_lacks_files_says_which(tmp_path, tiny):
    with pytest.raises(
        DatasetError, match=r"dataset\.data_dir: .*no-such-folder cannot be read: No such file or directory"
    ):
        build(tmp_path / "no-such-folder")
    with pytest.raises(DatasetError, match=r"none of train-images-idx3-ubyte\.gz, .* is in .*MNIST/raw"):
        build(tmp_path)
    del tiny["t10k-labels-idx1-ubyte.gz"]
    write(tmp_path, tiny)
    with pytest.raises(DatasetError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        build(tmp_path)
    with pytest.raises(DatasetError, match=r"dataset\.data_dir: none given; mnist needs train-images-idx3-ubyte\.gz"):
        images.build(config.Data(name="mnist"))


@pytest.mark.parametrize("locked", ["", "MNIST", "MNIST/raw", "MNIST/raw/train-labels-idx1-ubyte.gz"])
def test_a_folder_or_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, tiny, locked):
    write(tmp_path / "data/MNIST/raw", tiny)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / locked).chmod(0)
    with without_privileges(), pytest.raises(DatasetError, match=f"data/?{locked}.*Permission denied"):
        build("data")
    (tmp_path / "data" / locked).chmod(0o700)


def test_labels_outside_of_the_classes_are_refused(tmp_path, monkeypatch, tiny):
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", ImageSet("MNIST", (), {}, sizes=SIZES))
    write(tmp_path, tiny | {"train-labels-idx1-ubyte.gz": gzip.compress(encoded(LABELS[0] + 1))})
    with pytest.raises(DatasetError, match="labels 1 to 10 on file, expected 0 to 9"):
        build(tmp_path)


@pytest.mark.parametrize("form", ["archive", "packed", "unpacked"])
def test_emnist_letters_are_upright_with_labels_from_0(tmp_path, monkeypatch, form):
    spec = files.IMAGE_SETS["emnist_letters"]
    plain = contents(spec, first_label=spec.first_label)
    packed = {f"{part}.gz": gzip.compress(content) for part, content in plain.items()}
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for name, content in packed.items():
            archive.writestr(f"gzip/{name}", content)
    digests = {"gzip.zip": f"md5:{hashlib.md5((tmp_path / 'gzip.zip').read_bytes()).hexdigest()}"}
    small = ImageSet("EMNIST", (), digests, spec.prefixes, spec.archive, SIZES, spec.first_label, spec.transposed)
    monkeypatch.setitem(files.IMAGE_SETS, "emnist_letters", small)
    write(tmp_path, {"archive": {}, "packed": packed, "unpacked": plain}[form])
    dataset = build(tmp_path, "emnist_letters")
    assert dataset.n_classes == 26
    np.testing.assert_array_equal(dataset.train.images[:, 0], IMAGES[0].transpose(0, 2, 1))
    np.testing.assert_array_equal(dataset.test.labels, LABELS[1])


def test_an_archive_without_a_part_names_the_part(tmp_path):
    zipfile.ZipFile(tmp_path / "gzip.zip", "w").close()
    digests = {"gzip.zip": f"md5:{hashlib.md5((tmp_path / 'gzip.zip').read_bytes()).hexdigest()}"}
    spec = ImageSet("EMNIST", (), digests, archive="gzip.zip")
    with pytest.raises(DatasetError, match=r"gzip\.zip/gzip/train-images-idx3-ubyte\.gz: cannot be read"):
        idx.read(spec, [tmp_path / "gzip.zip"])


def test_every_download_has_a_digest_and_a_mirror():
    for spec in files.IMAGE_SETS.values():
        assert set(spec.downloads) <= set(spec.digests)
        assert spec.mirrors
        assert all(url.endswith("/") for url in spec.mirrors)
    assert {"digits", *files.IMAGE_SETS} == set(config.N_CLASSES)


def test_an_unknown_set_is_refused_with_a_suggestion():
    with pytest.raises(DatasetError, match=r"'fashion_minst' is no image set with files; did you mean 'fashion_mnist'"):
        files.image_set("fashion_minst")
    with pytest.raises(DatasetError, match="known: digits, mnist, fashion_mnist"):
        files.image_set("imagenet")


def test_a_download_takes_the_first_mirror_that_gives_the_right_file(tmp_path, monkeypatch, tiny, mirror):
    folder, url = mirror
    write(folder / "good", tiny)
    write(folder / "wrong", dict.fromkeys(tiny, b"<html>moved</html>"))
    mirrors = (f"{url}absent/", f"{url}cut/", f"{url}wrong/", "http://127.0.0.1:9/", f"{url}good/")
    spec = files.IMAGE_SETS["mnist"]
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", ImageSet("MNIST", mirrors, spec.digests, sizes=SIZES))
    raw = tmp_path / "raw"
    download_dataset.main(raw=raw, cfg={"dataset": {"name": "mnist"}})
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == tiny


@pytest.mark.parametrize("path", ["absent", "cut", "wrong"])
def test_a_download_that_fails_leaves_no_file_and_names_the_digest(tmp_path, mirror, path):
    folder, url = mirror
    write(folder, {"wrong": b"something else"})
    digest = f"md5:{hashlib.md5(b'expected').hexdigest()}"
    with pytest.raises(DatasetError, match=f"(?s)file: no mirror gave it, expected {digest}.*{url}{path}: "):
        files.fetch([url + path], tmp_path / "file", digest)
    assert [p.name for p in tmp_path.iterdir()] == ["mirror"]


def test_a_file_that_the_set_does_not_have_is_not_downloaded(tmp_path):
    with pytest.raises(DatasetError, match="kmnist has no download of that name, but train-images"):
        files.download("kmnist", tmp_path / "validation-images-idx3-ubyte.gz")
