"""The IDX format of MNIST's files: a big-endian header (magic number, sizes), then one byte per entry.

Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from saeflow.datasets.files import DatasetError, ImageSet, verify

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
        raise DatasetError(f"{name}: {len(content)} bytes unpacked, expected {n_bytes}: truncated or overlong")
    return np.frombuffer(content, np.uint8, offset=n_header).reshape(shape)


def read(spec: ImageSet, files: Sequence[Path]) -> list[UInt8[np.ndarray, "..."]]:
    """Images and labels of the training split, images and labels of the test split, as they are on file.

    Arguments:
        files: as `files.find` lists them: the four parts, each packed or not, or the archive alone.
    Raises:
        DatasetError: a file is not there, is truncated, or is not the one that it should be.
    """
    for path in files:
        if path.name in spec.digests:
            verify(path, spec.digests[path.name])
    if files[0].name == spec.archive:
        files = [zipfile.Path(files[0], f"gzip/{part}.gz") for part in spec.parts]
    shapes = [shape for n in spec.sizes for shape in ((n, SIDE, SIDE), (n,))]
    return [parse(_unpacked(path), path, shape) for path, shape in zip(files, shapes, strict=True)]


def _unpacked(path: Path | zipfile.Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.name.endswith(".gz") else content
    except (OSError, KeyError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read, or is truncated: {error}") from None
