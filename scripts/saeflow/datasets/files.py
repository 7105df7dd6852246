"""The files of the image sets with MNIST's layout: their names, digests and mirrors; finding and downloading them.

Only the standard library is imported, so that the Snakefile can ask which files a data folder holds.
"""

import difflib
import hashlib
import http.client
import logging
import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 1 << 20
TIMEOUT_S = 60

log = logging.getLogger(__name__)


class DatasetError(ValueError):
    """Images that cannot be had; the message names the file or key, and what would be right."""


@dataclass(frozen=True)
class ImageSet:
    """One image set: 28 x 28 grey pixels, and labels from 0 on."""

    folder: str
    """Its folder in torchvision's layout."""
    mirrors: tuple[str, ...]
    """Where the downloads lie, each URL ending just before the file's name."""
    digests: dict[str, str]
    """`<algorithm>:<hex digest>` by file name, of the downloads and of whatever else is known."""
    prefixes: tuple[str, str] = ("train", "t10k")
    """How the names of the training and the test files begin."""
    archive: str | None = None
    """Download that holds the four packed files in place of four downloads."""
    sizes: tuple[int, int] = (60_000, 10_000)
    """Images of the training and the test split."""
    first_label: int = 0
    """Label on file of class 0."""
    transposed: bool = False
    """Whether the file holds each image's columns as rows."""
    parts: tuple[str, ...] = field(init=False)
    """Unpacked names of the four files: images and labels for training, images and labels for test."""

    def __post_init__(self) -> None:
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        object.__setattr__(self, "parts", tuple(f"{prefix}-{kind}" for prefix in self.prefixes for kind in kinds))

    @property
    def downloads(self) -> tuple[str, ...]:
        """Names of the files to download."""
        return (self.archive,) if self.archive else tuple(f"{part}.gz" for part in self.parts)


# Digests: MD5 as in torchvision's source (torchvision/datasets/mnist.py); MNIST's SHA-256 of the files with those MD5s.
IMAGE_SETS: dict[str, ImageSet] = {
    "mnist": ImageSet(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "train-images-idx3-ubyte": "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": ImageSet(
        "FashionMNIST",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "kmnist": ImageSet(
        "KMNIST",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        {
            "train-images-idx3-ubyte.gz": "md5:bdb82020997e1d708af4cf47b453dcf7",
            "train-labels-idx1-ubyte.gz": "md5:e144d726b3acfaa3e44228e80efcd344",
            "t10k-images-idx3-ubyte.gz": "md5:5c965bf0a639b31b8f53240b1b52f4d7",
            "t10k-labels-idx1-ubyte.gz": "md5:7320c461ea6c1c855c0b718fb2a4b134",
        },
    ),
    "emnist_letters": ImageSet(
        "EMNIST",
        ("https://biometrics.nist.gov/cs_links/EMNIST/", "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/"),
        {"gzip.zip": "md5:58c8d27c78d21e728a6bc7b3cc06412e"},
        prefixes=("emnist-letters-train", "emnist-letters-test"),
        archive="gzip.zip",
        sizes=(124_800, 20_800),
        first_label=1,
        transposed=True,
    ),
}


def image_set(name: str) -> ImageSet:
    """Image set by name.

    Raises:
        DatasetError: none has that name.
    """
    if name not in IMAGE_SETS:
        close = difflib.get_close_matches(name, IMAGE_SETS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: digits, {', '.join(IMAGE_SETS)}"
        raise DatasetError(f"dataset.name: '{name}' is no image set with files; {hint}")
    return IMAGE_SETS[name]


def find(name: str, data_dir: Path | str) -> list[Path]:
    """Files of an image set in a folder: its four parts, packed or not, in the order of `parts`; or its archive alone.

    They may lie in `<data_dir>/<Folder>/raw` (torchvision's layout), `<data_dir>/<Folder>`, `<data_dir>/raw` or
    `<data_dir>`; the first of these that holds any of them is taken. A packed part is preferred: its digest is known.

    Raises:
        DatasetError: the folder is missing or cannot be read, or does not hold all parts.
    """
    spec, root = image_set(name), Path(data_dir)
    _names_in(root, needed=True)
    folders = (root / spec.folder / "raw", root / spec.folder, root / "raw", root)
    for folder in folders:
        there = _names_in(folder)
        parts = [next((n for n in (f"{part}.gz", part) if n in there), None) for part in spec.parts]
        if all(parts):
            return [folder / part for part in parts]
        if spec.archive in there:
            return [folder / spec.archive]
        if any(parts):
            missing = [f"{part}.gz" for part, found in zip(spec.parts, parts, strict=True) if not found]
            raise DatasetError(f"dataset.data_dir: {folder} lacks {', '.join(missing)} (unpacked will do)")
    looked = ", ".join(map(str, folders))
    raise DatasetError(f"dataset.data_dir: none of {', '.join(spec.downloads)} is in {looked}")


def _names_in(folder: Path, *, needed: bool = False) -> set[str]:
    """What a folder holds; nothing if it is not there and not needed."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not needed:
            return set()
        raise DatasetError(f"dataset.data_dir: {folder} cannot be read: {error.strerror}") from None


def verify(path: Path, digest: str) -> None:
    """Compare a file with its digest, `<algorithm>:<hex digest>`.

    Raises:
        DatasetError: it cannot be read or has another digest.
    """
    algorithm, _, expected = digest.partition(":")
    try:
        with path.open("rb") as file:
            # Not for security: builds of Python that refuse MD5 allow it then.
            found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
            n_bytes = file.tell()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    if found != expected:
        raise DatasetError(
            f"{path}: truncated, or another file: its {n_bytes} bytes have {algorithm} {found}, expected {expected}"
        )


def download(name: str, path: Path) -> None:
    """Download the file of an image set that `path` is named after.

    Raises:
        DatasetError: the set has no such download, or no mirror gave it.
    """
    spec = image_set(name)
    if path.name not in spec.downloads:
        raise DatasetError(f"{path}: {name} has no download of that name, but {', '.join(spec.downloads)}")
    fetch([mirror + path.name for mirror in spec.mirrors], path, spec.digests[path.name])


def fetch(urls: Sequence[str], path: Path, digest: str) -> None:
    """Download the first of some URLs that gives a file of this digest. Nothing else ever has the name `path`.

    Raises:
        DatasetError: none did; says how each failed.
    """
    unverified, failures = path.with_name(f"{path.name}.part"), []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, unverified.open("wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
            verify(unverified, digest)
            unverified.replace(path)
        except (OSError, http.client.HTTPException, DatasetError) as error:
            # Snakemake's retries repeat the whole list; here the next mirror has its turn.
            failures.append(f"{url}: {error}")
            log.warning("%s", failures[-1])
        else:
            log.info("%s from %s, %s", path.name, url, digest)
            return
        finally:
            unverified.unlink(missing_ok=True)
    raise DatasetError("\n".join([f"{path}: no mirror gave it, expected {digest}", *failures]))
