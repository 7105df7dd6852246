"""The IDX format of MNIST's files: a big-endian header (magic number, sizes), then one byte per entry.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from saeflow.datasets.files import DatasetError, ImageSet, read_verified

SIDE = 28


def parse(content: bytes, name: object, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """Array of an IDX file of unsigned bytes.

    Arguments:
        content: the unpacked file.
        name: what an error calls the file.
        shape: sizes that it must have.
    Raises:
        DatasetError: the magic number, the sizes or the number of bytes is another.
    """
    n_header = 4 + 4 * len(shape)
    # Two zero bytes, 8 for unsigned bytes, the number of dimensions.
    magic = 0x0800 + len(shape)
    if len(content) < n_header:
        raise DatasetError(f"{name}: {len(content)} bytes, not even an IDX header of {n_header}")
    found, *sizes = struct.unpack(f">{1 + len(shape)}I", content[:n_header])
    if found != magic:
        raise DatasetError(f"{name}: magic number {found:#010x}, expected {magic:#010x}: no IDX file of this kind")
    if tuple(sizes) != shape:
        raise DatasetError(f"{name}: sizes {tuple(sizes)}, expected {shape}: not the file that belongs here")
    n_bytes = n_header + math.prod(shape)
    if len(content) != n_bytes:
        raise DatasetError(f"{name}: {len(content)} bytes unpacked, expected {n_bytes}: truncated, or more than one file")
    return np.frombuffer(content, np.uint8, offset=n_header).reshape(shape)


def read(spec: ImageSet, files: Sequence[Path]) -> list[UInt8[np.ndarray, "..."]]:
    """Images and labels of the training split, images and labels of the test split, as they are on file.

    Arguments:
        files: the four parts in the order of `spec.parts`, each packed or not; or the archive alone.
    Raises:
        DatasetError: a file is not there, is truncated, or is not the one that it should be.
    """
    shapes = [shape for n in spec.sizes for shape in ((n, SIDE, SIDE), (n,))]
    if [path.name for path in files] == [spec.archive]:
        contents = _from_archive(spec, files[0])
    elif len(files) == len(spec.parts):
        contents = [(path, _unpack(read_verified(path, spec.digests.get(path.name)), path)) for path in files]
    else:
        raise DatasetError(f"{[str(path) for path in files]}: expected the files of {', '.join(spec.parts)}")
    return [parse(content, name, shape) for (name, content), shape in zip(contents, shapes, strict=True)]


def _from_archive(spec: ImageSet, path: Path) -> list[tuple[str, bytes]]:
    """Name and unpacked content of each part."""
    archive = zipfile.ZipFile(io.BytesIO(read_verified(path, spec.digests[path.name])))
    inside = {Path(name).name: name for name in archive.namelist()}
    lacking = [part for part in spec.parts if f"{part}.gz" not in inside]
    if lacking:
        raise DatasetError(f"{path}: lacks {', '.join(lacking)}")
    return [
        (f"{path}/{part}", _unpack(archive.read(inside[f"{part}.gz"]), Path(f"{path}/{part}.gz"))) for part in spec.parts
    ]


def _unpack(content: bytes, path: Path) -> bytes:
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DatasetError(f"{path}: truncated or no gzip file: {error}") from None
