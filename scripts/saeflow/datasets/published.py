"""Image sets as they were published: downloaded and read by torchvision, and compared by what their files hold.

Files that were packed anew are the same files; other images of the same shape are not. torchvision takes a second to
import, which only the functions that need it spend.
"""

import gzip
import hashlib
import http.client
import io
import logging
import math
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from saeflow.datasets.files import IMAGE_SETS, DatasetError, ImageSet, image_set, locate

TIMEOUT_S = 60
GZIP = b"\x1f\x8b"
BLOCK = 1 << 17

log = logging.getLogger(__name__)


def read(
    spec: ImageSet, files: Sequence[Path | zipfile.Path]
) -> list[UInt8[np.ndarray, "images h w"] | Int64[np.ndarray, " images"]]:
    """Images and labels of the training split, images and labels of the test split, as they are on file.

    Arguments:
        files: the parts, as `files.locate` lists them.
    Raises:
        DatasetError: a file cannot be read, or is not the one that was published.
    """
    from torchvision.datasets import mnist

    arrays = []
    with tempfile.TemporaryDirectory() as folder:
        for part, file in zip(spec.parts, files, strict=True):
            unpacked = Path(folder, part)
            unpacked.write_bytes(content(spec, part, file))
            reader = mnist.read_image_file if "-images-" in part else mnist.read_label_file
            try:
                array = reader(str(unpacked)).numpy()
            except (AssertionError, KeyError, RuntimeError, TypeError, ValueError):
                array = np.empty(0)
            if array.shape != spec.shape(part):
                raise _refusal(spec, part, file, f"its header is none of an IDX file of {spec.shape(part)} bytes")
            arrays.append(array)
    return arrays


def content(spec: ImageSet, part: str, file: Path | zipfile.Path) -> bytes:
    """The bytes of a part, unpacked: the published ones, where their digest is known.

    Where it is not, and the packed file is not the published one either, a warning says so.

    Raises:
        DatasetError: the file cannot be read, or holds other bytes than the published one.
    """
    n_bytes = _n_bytes(spec, part)
    try:
        with file.open("rb") as stream:
            # It may be without end, or unpack without end: no more is read than a packed part has, and one byte more.
            raw = stream.read(n_bytes + n_bytes // 100 + BLOCK)
        data = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(n_bytes + 1) if raw.startswith(GZIP) else raw
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise _refusal(spec, part, file, f"cannot be read, or is truncated ({error})") from None
    if len(data) > n_bytes:
        raise _refusal(spec, part, file, "unpacks to more bytes, damaged or another file")
    if len(data) < n_bytes:
        raise _refusal(spec, part, file, f"{len(data)} bytes unpacked, truncated or another file")
    number = spec.parts.index(part)
    found, expected = hashlib.sha256(data).hexdigest(), spec.digests[number]
    if expected and found != expected:
        raise _refusal(spec, part, file, f"another file: unpacked it has SHA-256 {found}{_whose(found)}")
    if not expected and hashlib.sha256(raw).hexdigest() != spec.packed_digests[number]:
        log.warning("%s: only its size was compared, as no digest is known of what the published file holds", file)
    return data


def _n_bytes(spec: ImageSet, part: str) -> int:
    """Bytes of an IDX file of bytes: the magic number, the sizes, the entries."""
    shape = spec.shape(part)
    return 4 * (1 + len(shape)) + math.prod(shape)


def _whose(digest: str) -> str:
    for spec in IMAGE_SETS.values():
        if digest in spec.digests:
            return f" as {spec.folder}'s {spec.parts[spec.digests.index(digest)]}"
    return ""


def _refusal(spec: ImageSet, part: str, file: Path | zipfile.Path, what: str) -> DatasetError:
    digest = spec.digests[spec.parts.index(part)]
    digest = f", SHA-256 {digest}" if digest else ""
    return DatasetError(
        f"{file}: {what}; expected {spec.folder}'s {part}, {_n_bytes(spec, part)} bytes unpacked{digest}. "
        "Copy or download it anew"
    )


def download(name: str, folder: Path) -> None:
    """Download the files of an image set. Each has its name in the folder only after all were compared.

    Raises:
        DatasetError: no mirror gave one of them.
    """
    from torchvision import datasets

    spec = image_set(name)
    published = getattr(datasets, spec.folder)
    digests = {spec.archive: published.md5} if spec.archive else dict(published.resources)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unverified:
        for file in spec.downloads:
            fetch([mirror + file for mirror in spec.mirrors], Path(unverified, file), digests[file])
        for part, file in zip(spec.parts, locate(name, unverified), strict=True):
            content(spec, part, file)
        for file in spec.downloads:
            Path(unverified, file).replace(folder / file)


def fetch(urls: Sequence[str], path: Path, md5: str) -> None:
    """Download the first of some URLs that gives a file of this digest.

    Raises:
        DatasetError: none did; says how each failed.
    """
    from torchvision.datasets.utils import download_url

    failures, before = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        for url in urls:
            try:
                download_url(url, path.parent, path.name, md5)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                # Snakemake's retries repeat the whole list; here the next mirror has its turn.
                failures.append(f"{url}: {error}")
                log.warning("%s", failures[-1])
            else:
                log.info("%s from %s, MD5 %s", path.name, url, md5)
                return
    finally:
        socket.setdefaulttimeout(before)
    path.unlink(missing_ok=True)
    raise DatasetError("\n".join([f"{path.name}: no mirror gave it, expected MD5 {md5}", *failures]))
