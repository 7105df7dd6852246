"""A crate's zip archive, unpacked without trust: into its own folder, what its metadata declares, and no more."""

import hashlib
import lzma
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saeflow.publish import crate_layout as layout
from saeflow.publish import crate_metadata
from saeflow.publish.crate_metadata import CrateError, check_name, check_names
from saeflow.reproduce import BLOCK
from saeflow.terminal import plain

MOST_GIB = 4.0
"""What a crate unpacks to, at most, unless its reader allows more."""
_RATIO, _FREE = 100, 64 << 20  # of unpacked to packed bytes, beyond so many
_MOST_ENTRIES = 200_000
_MOST_METADATA = 64 << 20
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError, MemoryError),
)


def unpack(crate: Path, folder: Path, most_gib: float = MOST_GIB) -> None:
    """Unpack a crate into a folder that is not there before; of a crate that is refused nothing is left.

    A folder that holds the same crate is left as it is.

    Raises:
        CrateError: no crate, a damaged one, one that unpacks to more than it may, or one that is not to be trusted.
    """
    with _opened(crate) as archive:
        members = _members(archive, most_gib)
        if layout.METADATA not in members:
            raise CrateError(f"{crate}: no {layout.METADATA} at its top, so it is no RO-Crate")
        if members[layout.METADATA].file_size > _MOST_METADATA:
            raise CrateError(f"{crate}: its {layout.METADATA} has more bytes than that of any study")
        metadata = archive.read(members.pop(layout.METADATA))
        if folder.is_dir():
            there = folder / layout.METADATA
            if not there.is_file() or there.read_bytes() != metadata:
                raise CrateError(f"{folder}: holds another crate; name another folder to build in")
            return
        declared = crate_metadata.read(metadata).files
        if strangers := sorted(members.keys() - declared):
            raise CrateError(f"{crate}: holds '{plain(strangers[0])}', which its {layout.METADATA} does not declare")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".crate-") as unfinished:
            root = Path(unfinished, "crate")
            for name, member in members.items():
                _extract(archive, member, root / name, declared[name])
            (root / layout.METADATA).write_bytes(metadata)
            root.rename(folder)


@contextmanager
def _opened(crate: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; what reading a damaged one raises is a sentence."""
    try:
        if not zipfile.is_zipfile(crate):
            raise CrateError(f"{crate}: neither a folder nor a zip archive")
        with zipfile.ZipFile(crate) as archive:
            yield archive
    except _DAMAGE as error:
        raise CrateError(f"{crate}: damaged, or cut off ({plain(error)}); fetch it again") from None


def _members(archive: zipfile.ZipFile, most_gib: float) -> dict[str, zipfile.ZipInfo]:
    """Files of the archive by name, each one that a crate may hold."""
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise CrateError(f"{archive.filename}: {len(entries):,} files; no crate has more than {_MOST_ENTRIES:,}")
    members = {}
    for entry in entries:
        name = check_name(entry.filename.rstrip("/") if entry.is_dir() else entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            raise CrateError(f"{archive.filename}: '{name}' is a link or a device; a crate holds files alone")
        if entry.flag_bits & 1:
            raise CrateError(f"{archive.filename}: '{name}' is encrypted; a crate holds plain files")
        if entry.is_dir():
            continue
        if name in members:
            raise CrateError(f"{archive.filename}: holds '{name}' twice; this archive is not to be trusted")
        members[name] = entry
    check_names(members)
    size, packed = sum(entry.file_size for entry in members.values()), Path(archive.filename).stat().st_size
    if size > most_gib * 2**30:
        raise CrateError(
            f"{archive.filename}: unpacks to {size / 2**30:,.1f} GiB, more than {most_gib:g}; MOST_GIB (--most-gib) "
            "allows more"
        )
    if size > _FREE + _RATIO * packed:
        raise CrateError(f"{archive.filename}: unpacks to {size / packed:,.0f} times its size, as no crate does")
    return members


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, sha256: str) -> None:
    """Write one file if it has its digest; zipfile gives no more bytes of it than were counted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(member) as packed, path.open("xb") as file:
        while block := packed.read(BLOCK):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != sha256:
        raise CrateError(f"{archive.filename}: altered since it was made: '{member.filename}' has another sha256")
