"""Same config, same bytes: child seeds, digests, and the manifest of a study."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUTF8": "1"}
"""What a job's process must find when it starts: without it the sums of cuBLAS depend on the stream, and what libraries
read and write depends on the locale."""


def child_seed(root: int, *names: object) -> int:
    """Seed in [0, 2**63) of one named draw.

    A hash of the names, so that a study which gains a job leaves every other job's draws as they were.
    """
    text = "\x1f".join([str(int(root)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: Any) -> str:
    """Hex digest of what JSON can hold; equal content has equal ones."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_json(path: Path | str, content: Any) -> None:
    """Write JSON with sorted keys, so that equal content is equal bytes; NaN and infinity are refused."""
    Path(path).write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def write_arrays(path: Path | str, arrays: Mapping[str, Any]) -> None:
    """Write an uncompressed .npz that equal arrays make equal under every version of Python.

    numpy's own has entries of unstated size, whose headers changed with Python 3.11.4.
    """
    import numpy as np

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getbuffer())


def files_below(folder: Path) -> set[Path]:
    """Files of a result that is a folder: all but the one, of no content, by which Snakemake marks it as finished."""
    return {path for path in folder.rglob("*") if path.is_file() and path.name != ".snakemake_timestamp"}


def manifest(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Digest of every file among `paths` and below its directories, by path relative to `root`, sorted."""
    files: set[Path] = set()
    for path in map(Path, paths):
        files |= files_below(path) if path.is_dir() else {path}
    named = {file.relative_to(root).as_posix(): file for file in files}
    return {name: sha256_file(named[name]) for name in sorted(named)}


def write_manifest(path: Path, digests: Mapping[str, str]) -> None:
    """Write digests in the form that `sha256sum -c` reads."""
    path.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())), encoding="utf-8")


def read_manifest(path: Path) -> dict[str, str]:
    """Digests by name.

    Raises:
        ValueError: a line that is not `<64 hex digits>  <name>`.
    """
    digests = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
        digest, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not name.isprintable() or not name or name in digests:
            raise ValueError(
                f"{path}, line {number}: expected '<sha256>  <path>', each path once, found {line[:200]!r}"
            )
        digests[name] = digest
    return digests
