"""Finding, comparing and downloading the files of an image set, and reading them."""

import gzip
import hashlib
import http.server
import io
import logging
import os
import re
import struct
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from torchvision import datasets

import build_dataset
import download_dataset
from saeflow.config.images import N_CLASSES, Data
from saeflow.datasets import files, images, published
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


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny(monkeypatch):
    """MNIST in small: packed content by file name, known under the name `mnist`, and to torchvision."""
    plain = contents(ImageSet("MNIST", (), ()))
    packed = {f"{part}.gz": gzip.compress(content, mtime=0) for part, content in plain.items()}
    spec = ImageSet("MNIST", (), tuple(map(sha256, plain.values())), sizes=SIZES)
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", spec)
    md5s = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", md5s)
    return packed


def unpacked(packed):
    return {name.removesuffix(".gz"): gzip.decompress(content) for name, content in packed.items()}


def zipped(named):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in named.items():
            archive.writestr(name, part)
    return content.getvalue()


def write(folder, named):
    for name, content in named.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def build(folder, name="mnist"):
    return images.build(Data(name=name, data_dir=str(folder)))


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


def assert_tiny(dataset):
    assert (dataset.n_classes, dataset.shape) == (10, (28, 28))
    for split, array, labels in zip((dataset.train, dataset.test), IMAGES, LABELS, strict=True):
        np.testing.assert_array_equal(split.images[:, 0], array)
        np.testing.assert_array_equal(split.labels, labels)


@pytest.mark.parametrize("layout", ["MNIST/raw", "MNIST", "raw", ".", "mnist/RAW"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_layout_of_a_data_folder_gives_the_same_images(tmp_path, tiny, layout, packed):
    write(tmp_path / layout, tiny if packed else unpacked(tiny))
    assert_tiny(build(tmp_path))


def forms(packed):
    """Ways in which people have the same files."""
    plain, kaggle = unpacked(packed), {n.replace("-idx", ".idx"): c for n, c in unpacked(packed).items()}
    of_two = {
        f"{folder}/raw/{n}": c[skip:] for skip, folder in enumerate(("MNIST", "KMNIST")) for n, c in packed.items()
    }
    test = [name for name in packed if name.startswith("t10k")]
    return {
        "packed anew": {f"{n}.gz": gzip.compress(c, 1, mtime=99) for n, c in plain.items()},
        "in two members": {f"{n}.gz": gzip.compress(c[:50]) + gzip.compress(c[50:]) for n, c in plain.items()},
        "unpacked under the packed name": {f"{n}.gz": c for n, c in plain.items()},
        "capitals": {n.upper(): c for n, c in packed.items()},
        "Kaggle": kaggle,
        "Kaggle, in folders": {f"{n}/{n}": c for n, c in plain.items()},
        "Kaggle, both": kaggle | {f"{n}/{n}": c for n, c in plain.items()},
        "one archive": {"archive.zip": zipped({f"data/{n}": c for n, c in kaggle.items()})},
        "an archive of two sets": {"archive.zip": zipped(of_two)},
        "an archive each": {f"{n}.zip": zipped({n: c}) for n, c in plain.items()},
        "an archive of some": packed | {"test.ZIP": zipped({n: packed[n] for n in test})} | dict.fromkeys(test, None),
        "beside a broken archive": plain | {"other.zip": b"none"},
    }


@pytest.mark.parametrize("form", forms({}))
def test_files_are_accepted_by_what_they_hold(tmp_path, tiny, form):
    write(tmp_path, {name: content for name, content in forms(tiny)[form].items() if content is not None})
    assert_tiny(build(tmp_path))
    # Snakemake hands the job the files that were found.
    found, cfg = files.find("mnist", tmp_path), {"dataset": {"name": "mnist", "data_dir": str(tmp_path)}, "seed": 0}
    assert all(path.is_file() for path in found)
    build_dataset.main(raw=found, dataset=tmp_path / "out.npz", cfg=cfg)
    assert_tiny(images.ImageDataset.load(tmp_path / "out.npz"))


def test_an_archive_may_be_named_itself(tmp_path, tiny):
    write(tmp_path, {"a.zip": zipped(tiny), "b.zip": zipped(dict.fromkeys(tiny, b""))})
    assert_tiny(build(tmp_path / "a.zip"))


def test_a_packed_file_is_taken_before_the_unpacked_one(tmp_path, tiny):
    write(tmp_path, tiny | {name[:-3]: b"" for name in tiny})
    assert [path.name for path in files.find("mnist", tmp_path)] == list(tiny)


def test_a_file_of_another_set_is_no_part(tmp_path, tiny):
    write(tmp_path / "FashionMNIST/raw", tiny)
    with pytest.raises(
        DatasetError, match=r"none of train-images-idx3-ubyte\.gz.*; it holds FashionMNIST\. Only these"
    ):
        build(tmp_path)


DAMAGES = {
    "truncated, packed": lambda content: gzip.compress(content)[:-100],
    "truncated, unpacked": lambda content: content[:-100],
    "a bit flipped, packed": lambda content: gzip.compress(content[:999] + bytes([content[999] ^ 1]) + content[1000:]),
    "a bit flipped, unpacked": lambda content: content[:999] + bytes([content[999] ^ 1]) + content[1000:],
    "other images": lambda content: content[:16] + content[:15:-1],
    "overlong": lambda content: content + b"0",
    "without end, packed": lambda content: gzip.compress(bytes(1 << 26)),
    "without end, empty": lambda content: gzip.compress(b"") * 20_000,
    "empty": lambda content: b"",
    "a page": lambda content: b"<html>moved</html>",
    "header of 32-bit numbers": lambda content: b"\0\0\x0c\3" + content[4:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("in_archive", [False, True])
def test_other_content_is_refused_in_seconds_with_what_was_expected(tmp_path, tiny, damage, in_archive):
    name = "t10k-images-idx3-ubyte"
    content = unpacked(tiny)[name]
    named = tiny | {f"{name}.gz": DAMAGES[damage](content)}
    write(tmp_path, {"archive.zip": zipped(named)} if in_archive else named)
    begun = time.monotonic()
    with pytest.raises(DatasetError) as error:
        build(tmp_path)
    assert time.monotonic() - begun < 5
    assert str(tmp_path / "archive.zip" / f"{name}.gz" if in_archive else tmp_path / f"{name}.gz") in str(error.value)
    assert f"expected MNIST's {name}, {len(content)} bytes unpacked, SHA-256 {sha256(content)}" in str(error.value)


def test_another_set_s_file_is_named_with_both_digests(tmp_path, monkeypatch, tiny):
    other = encoded(LABELS[0][::-1])
    monkeypatch.setitem(files.IMAGE_SETS, "kmnist", ImageSet("KMNIST", (), ("", sha256(other), "", ""), sizes=SIZES))
    write(tmp_path, tiny | {"train-labels-idx1-ubyte.gz": gzip.compress(other)})
    with pytest.raises(
        DatasetError, match=f"SHA-256 {sha256(other)} as KMNIST's train-labels.*{sha256(encoded(LABELS[0]))}"
    ):
        build(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(IMAGES[0])[:-1], "23535 bytes unpacked, truncated or another file; expected .* 23536 bytes"),
        (encoded(LABELS[0]) + bytes(23536 - 38), r"its header is none of an IDX file of \(30, 28, 28\) bytes"),
        (encoded(IMAGES[0].reshape(30, 56, 14)), r"its header is none of an IDX file of \(30, 28, 28\) bytes"),
        (bytes(23536), r"its header is none of an IDX file of \(30, 28, 28\) bytes"),
    ],
)
def test_a_file_of_unknown_digest_is_held_to_its_header_and_length(tmp_path, monkeypatch, tiny, content, message):
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", ImageSet("MNIST", (), ("",) * 4, sizes=SIZES))
    write(tmp_path, unpacked(tiny) | {"train-images-idx3-ubyte": content})
    with pytest.raises(DatasetError, match=f"train-images-idx3-ubyte: {message}"):
        build(tmp_path)


def test_where_the_content_has_no_known_digest_the_packed_file_has_one_or_a_warning_says_so(
    tmp_path, monkeypatch, tiny, caplog
):
    digests = tuple(map(sha256, tiny.values()))
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", ImageSet("MNIST", (), ("",) * 4, digests, sizes=SIZES))
    write(tmp_path / "published", tiny)
    write(tmp_path / "unpacked", unpacked(tiny))
    with caplog.at_level(logging.WARNING):
        assert_tiny(build(tmp_path / "published"))
        assert not caplog.records
        assert_tiny(build(tmp_path / "unpacked"))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        str(tmp_path / "unpacked" / name) for name in unpacked(tiny)
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK", "archive.zip cannot be read, or is truncated: File is not a zip file"),
        (zipped({"train-images-idx3-ubyte.gz": b""}), "lacks train-labels-idx1-ubyte.gz, t10k-images"),
    ],
)
def test_an_archive_without_the_parts_is_named(tmp_path, tiny, content, said):
    write(tmp_path, {"archive.zip": content})
    with pytest.raises(DatasetError, match=said):
        build(tmp_path)


def test_a_name_that_is_no_file_is_no_part(tmp_path, tiny):
    name = "t10k-labels-idx1-ubyte"
    write(tmp_path, {n: c for n, c in tiny.items() if n != f"{name}.gz"})
    os.mkfifo(tmp_path / name)
    with pytest.raises(DatasetError, match=f"lacks {name}"):
        build(tmp_path)


@pytest.mark.parametrize("others", [("mnist_test.csv", "mnist_train.csv"), ("mnist.npz",)])
def test_another_form_of_the_set_is_named_with_what_to_do(tmp_path, others):
    write(tmp_path, dict.fromkeys(others, b"1,0,0"))
    said = rf"none of train-images-idx3-ubyte\.gz, .*it holds {', '.join(others)}\. Only these are read, packed or not"
    with pytest.raises(DatasetError, match=f"{said}; without data_dir they are downloaded"):
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
        images.build(Data(name="mnist"))


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
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", ImageSet("MNIST", (), ("",) * 4, sizes=SIZES))
    write(tmp_path, tiny | {"train-labels-idx1-ubyte.gz": gzip.compress(encoded(LABELS[0] + 1))})
    with pytest.raises(DatasetError, match="labels 1 to 10 on file, expected 0 to 9"):
        build(tmp_path)


@pytest.fixture
def tiny_emnist(monkeypatch):
    """EMNIST's letters in small: packed content by file name."""
    spec = files.IMAGE_SETS["emnist_letters"]
    plain = contents(spec, first_label=spec.first_label)
    packed = {f"{part}.gz": gzip.compress(content) for part, content in plain.items()}
    small = replace(spec, sizes=SIZES, packed_digests=tuple(map(sha256, packed.values())))
    monkeypatch.setitem(files.IMAGE_SETS, "emnist_letters", small)
    return packed


@pytest.mark.parametrize("form", ["archive", "packed", "unpacked", "gzip", "emnist_source_files"])
def test_emnist_letters_are_upright_with_labels_from_0(tmp_path, tiny_emnist, form):
    inner = {f"gzip/{name}": content for name, content in tiny_emnist.items()}
    forms = {"archive": {"gzip.zip": zipped(inner)}, "packed": tiny_emnist, "unpacked": unpacked(tiny_emnist)}
    folders = {form: {f"{form}/{n}": c for n, c in unpacked(tiny_emnist).items()}}
    write(tmp_path, (folders | forms)[form])
    dataset = build(tmp_path, "emnist_letters")
    assert dataset.n_classes == 26
    np.testing.assert_array_equal(dataset.train.images[:, 0], IMAGES[0].transpose(0, 2, 1))
    np.testing.assert_array_equal(dataset.test.labels, LABELS[1])


def test_every_part_has_a_digest_and_every_download_a_digest_in_torchvision_and_a_mirror():
    for spec in files.IMAGE_SETS.values():
        assert all(content or packed for content, packed in zip(spec.digests, spec.packed_digests, strict=True))
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (*spec.digests, *spec.packed_digests) if digest)
        published = getattr(datasets, spec.folder)
        assert (
            spec.archive == os.path.basename(published.url)
            if spec.archive
            else spec.downloads == tuple(dict(published.resources))
        )
        assert spec.mirrors
        assert all(url.endswith("/") for url in spec.mirrors)
    assert {"digits", *files.IMAGE_SETS} == set(N_CLASSES)


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
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", replace(files.IMAGE_SETS["mnist"], mirrors=mirrors))
    raw = tmp_path / "raw"
    download_dataset.main(raw=raw, cfg={"dataset": {"name": "mnist"}})
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == tiny


def test_an_archive_is_downloaded_whole(tmp_path, monkeypatch, tiny_emnist, mirror):
    folder, url = mirror
    archive = zipped({f"gzip/{name}": content for name, content in tiny_emnist.items()})
    write(folder, {"gzip.zip": archive})
    monkeypatch.setitem(files.IMAGE_SETS, "emnist_letters", replace(files.IMAGE_SETS["emnist_letters"], mirrors=(url,)))
    monkeypatch.setattr(datasets.EMNIST, "md5", hashlib.md5(archive).hexdigest())
    published.download("emnist_letters", tmp_path / "raw")
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == {"gzip.zip": archive}


def test_a_download_with_the_right_md5_and_other_content_gets_no_name(tmp_path, monkeypatch, tiny, mirror):
    folder, url = mirror
    write(folder, tiny)
    spec = replace(files.IMAGE_SETS["mnist"], mirrors=(url,), digests=(sha256(b"published"),) * 4)
    monkeypatch.setitem(files.IMAGE_SETS, "mnist", spec)
    with pytest.raises(DatasetError, match=f"another file: .* SHA-256 {sha256(b'published')}"):
        published.download("mnist", tmp_path / "raw")
    assert not list((tmp_path / "raw").iterdir())


@pytest.mark.parametrize("path", ["absent", "cut", "wrong"])
def test_a_download_that_fails_leaves_no_file_and_names_the_digest(tmp_path, mirror, path):
    folder, url = mirror
    write(folder, {"wrong": b"something else"})
    digest = hashlib.md5(b"expected").hexdigest()
    with pytest.raises(DatasetError, match=f"(?s)file: no mirror gave it, expected MD5 {digest}.*{url}{path}: "):
        published.fetch([url + path], tmp_path / "file", digest)
    assert [p.name for p in tmp_path.iterdir()] == ["mirror"]


def test_published_mnist_packed_anew_has_the_bytes_of_the_original(tmp_path, data_dir):
    original = data_dir / "torchvision/MNIST/raw"
    for path in original.iterdir():
        content = gzip.decompress(path.read_bytes())
        write(tmp_path, {path.name.replace("-idx", ".idx"): gzip.compress(content, 1, mtime=1)})
    for folder, name in ((original, "a.npz"), (tmp_path, "b.npz")):
        images.build(Data(name="mnist", data_dir=str(folder))).save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
