"""The files of the image sets with MNIST's layout: their names and digests, and which of them a folder holds.

Only the standard library is imported, so that the Snakefile can ask which files a data folder holds. `published` reads
and downloads them.
"""

import difflib
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Folders that the files lie in below that of their set: torchvision's, that of EMNIST's archive, Kaggle's.
SUBFOLDERS = ("raw", "gzip", "emnist_source_files")
SIDE = 28


class DatasetError(ValueError):
    """Images that cannot be had; the message names the file or key, and what would be right."""


@dataclass(frozen=True)
class ImageSet:
    """One image set: 28 x 28 grey pixels, and labels from 0 on."""

    folder: str
    """Its folder in torchvision's layout, and its class in torchvision.datasets."""
    mirrors: tuple[str, ...]
    """Where the downloads lie, each URL ending just before the file's name."""
    digests: tuple[str, ...]
    """SHA-256 of the four parts, unpacked; empty where it is not known."""
    packed_digests: tuple[str, ...] = ("", "", "", "")
    """SHA-256 of the four parts as they were published, packed, where the former is not known."""
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

    def shape(self, part: str) -> tuple[int, ...]:
        """Sizes of a part: images, rows, columns; or labels."""
        n_images = self.sizes[self.parts.index(part) // 2]
        return (n_images, SIDE, SIDE) if "-images-" in part else (n_images,)

    @property
    def downloads(self) -> tuple[str, ...]:
        """Names of the files to download."""
        return (self.archive,) if self.archive else tuple(f"{part}.gz" for part in self.parts)


# Digests are of what the files hold that have the MD5 of torchvision.datasets; those of packed files as other projects
# record them.
IMAGE_SETS: dict[str, ImageSet] = {
    "mnist": ImageSet(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": ImageSet(
        "FashionMNIST",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "kmnist": ImageSet(
        "KMNIST",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        (
            "",
            "2a16eeae62da984b8bd24fa32e31d47291f01dac3fe84d5594f304f71e7d374b",
            "76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e",
            "a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6",
        ),
        ("51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", "", "", ""),
    ),
    "emnist_letters": ImageSet(
        "EMNIST",
        ("https://biometrics.nist.gov/cs_links/EMNIST/", "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/"),
        ("", "", "", ""),
        (
            "6288f418a917e007bf5fddb823a2dc7a5c6a35031401b93292a539cb12bd881f",
            "9759af91ea6bccdf07a6040fd085861f2ec88e37f7c3f5760f6feb57106fbe5c",
            "50f0e93d75b99b463e9760b8345866f22587fa2c2fba472730a5ba09c693412d",
            "924955c31fe7fd809b7303b5c0141282955f4b8390c74cdfd5d80435e0f4b4cb",
        ),
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


def locate(name: str, data_dir: Path | str) -> list[Path | zipfile.Path]:
    """The parts of an image set in a folder, in the order of `ImageSet.parts`.

    They may lie in `<data_dir>/<Folder>/raw` (torchvision's layout), `<data_dir>/<Folder>`, `<data_dir>/raw` or
    `<data_dir>`, or in a zip archive there; the first of these that holds all of them is taken. Packed files are
    preferred: of some the digest is known. Capitals make no difference, nor whether dots, hyphens or underscores divide
    a name: Kaggle has `train-images.idx3-ubyte`, and a folder of a part's name around it. `data_dir` may be an archive.

    Raises:
        DatasetError: the folder is missing or cannot be read, or does not hold all parts.
    """
    spec, root = image_set(name), Path(data_dir)
    troubles = []
    for folder in _folders(spec, root):
        found, unread = _parts_in(spec, folder)
        if len(found) == len(spec.parts):
            return [found[part] for part in spec.parts]
        if found:
            missing = ", ".join(f"{part}.gz" for part in spec.parts if part not in found)
            troubles.append(f"dataset.data_dir: {folder} lacks {missing} (unpacked will do)")
        troubles += unread
    if troubles:
        raise DatasetError("\n".join(troubles))
    wanted = ", ".join(dict.fromkeys([*spec.downloads, *(f"{part}.gz" for part in spec.parts)]))
    looked = ", ".join(str(root / below) for below in (f"{spec.folder}/raw", spec.folder, "raw", "."))
    there = [path.name for path in _entries(root)]
    instead = f"; it holds {', '.join(there[:4])}{', ...' if there[4:] else ''}" if there else ""
    raise DatasetError(
        f"dataset.data_dir: none of {wanted} is in {looked}, or in a zip archive there{instead}. "
        "Only these are read, packed or not; without data_dir they are downloaded"
    )


def find(name: str, data_dir: Path | str) -> list[Path]:
    """Files on disk with the parts of an image set, as `locate` finds them: four, or fewer where an archive does.

    Raises:
        DatasetError: as `locate`.
    """
    parts = locate(name, data_dir)
    return list(dict.fromkeys(Path(part.root.filename) if isinstance(part, zipfile.Path) else part for part in parts))


def _folders(spec: ImageSet, root: Path) -> Iterator[Path]:
    """Where the parts may lie: below what is named after the set, then below the root."""
    own = [path for path in _entries(root) if _letters(path.name) == _letters(spec.folder) and os.path.isdir(path)]
    for base in (*own, root):
        yield from (path for path in _entries(base) if path.name.lower() in SUBFOLDERS and os.path.isdir(path))
        yield base


def _parts_in(spec: ImageSet, folder: Path) -> tuple[dict[str, Path | zipfile.Path], list[str]]:
    """The parts that one folder holds, by name; and what kept an archive from being read."""
    named = [path for path in _entries(folder) if _part(spec, path.name)]
    # As Kaggle unpacks an archive: a folder of the file's name around the file.
    inner = [file for path in named if os.path.isdir(path) for file in _entries(path)]
    files = list(filter(os.path.isfile, named + inner))
    found = _by_part(spec, (file for file in files if file.name.lower().endswith(".gz")))
    unread = []
    if len(found) < len(spec.parts):
        for path in _entries(folder):
            if path.name.lower().endswith(".zip") and os.path.isfile(path):
                try:
                    found = _by_part(spec, _members(spec, path)) | found
                except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                    unread.append(f"dataset.data_dir: {path} cannot be read, or is truncated: {error}")
        found = _by_part(spec, files) | found
    return found, unread


def _by_part(spec: ImageSet, files: Iterable[Path | zipfile.Path]) -> dict[str, Path | zipfile.Path]:
    return {part: file for file in files if (part := _part(spec, file.name))}


def _part(spec: ImageSet, name: str) -> str | None:
    """The part that a file is named after, if any."""
    part = re.sub(r"[._]", "-", name.lower()).removesuffix("-gz")
    return part if part in spec.parts else None


def _members(spec: ImageSet, path: Path) -> list[zipfile.Path]:
    """Files in an archive, but for those in the folder of another set."""
    archive = zipfile.ZipFile(path)
    others = {_letters(other.folder) for other in IMAGE_SETS.values()} - {_letters(spec.folder)}
    names = [name for name in archive.namelist() if not name.endswith("/")]
    return [zipfile.Path(archive, name) for name in names if others.isdisjoint(map(_letters, name.split("/")[:-1]))]


def _letters(name: str) -> str:
    """A name without its capitals and what divides it."""
    return re.sub("[^a-z0-9]", "", name.lower())


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted; of a file itself."""
    if os.path.isfile(folder):
        return [folder]
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        raise DatasetError(f"dataset.data_dir: {folder} cannot be read: {error.strerror}") from None
