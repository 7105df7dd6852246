"""Same config, same bytes: child seeds, digests, the manifest of a study, and the comparison of two studies."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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


@dataclass
class Comparison:
    """What differs between a study and its reference."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: dict[str, str] = field(default_factory=dict)
    n_equal: int = 0

    @property
    def equal(self) -> bool:
        return not (self.missing or self.unexpected or self.different)

    def lines(self) -> list[str]:
        """The verdict, then a line per difference."""
        head = f"{'equal' if self.equal else 'DIFFERENT'}: {self.n_equal} the same, {len(self.different)} different, "
        return [
            f"{head}{len(self.missing)} missing, {len(self.unexpected)} unexpected",
            *(f"missing     {name}" for name in self.missing),
            *(f"unexpected  {name}" for name in self.unexpected),
            *(f"different   {name}: {how}" for name, how in sorted(self.different.items())),
        ]


class DifferentError(Exception):
    """A study is not what its reference says; the message is the list of differences."""


def compare_manifests(ours: Mapping[str, str], reference: Mapping[str, str]) -> Comparison:
    """Compare digest by digest: for studies built on the same class of machine."""
    result = Comparison(sorted(set(reference) - set(ours)), sorted(set(ours) - set(reference)))
    for name in sorted(set(ours) & set(reference)):
        if ours[name] == reference[name]:
            result.n_equal += 1
        else:
            result.different[name] = f"sha256 {ours[name][:12]}…, reference {reference[name][:12]}…"
    return result


def compare_tables(ours: Path, reference: Path, *, rtol: float, atol: float) -> Comparison:
    """Compare every Parquet table below two folders within |a - b| <= atol + rtol |b|: for unlike machines."""
    mine, theirs = ({p.relative_to(root).as_posix() for p in root.rglob("*.parquet")} for root in (ours, reference))
    result = Comparison(sorted(theirs - mine), sorted(mine - theirs))
    for name in sorted(mine & theirs):
        difference = _table_difference(ours / name, reference / name, rtol=rtol, atol=atol)
        if difference is None:
            result.n_equal += 1
        else:
            result.different[name] = difference
    return result


def _table_difference(ours: Path, reference: Path, *, rtol: float, atol: float) -> str | None:
    """How the tables differ: the worst column of numbers, or the first column of anything else."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    a = pd.read_parquet(ours)
    try:
        b = pd.read_parquet(reference)
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"the reference cannot be read ({str(error)[:200]!r})"
    if a.shape != b.shape or list(a.columns) != list(b.columns):
        return f"shape {a.shape} with columns {list(a.columns)}, reference {b.shape} with {list(b.columns)}"
    worst = None
    for column in a.columns:
        x, y = a[column], b[column]
        if not (pd.api.types.is_numeric_dtype(x) and pd.api.types.is_numeric_dtype(y)):
            unlike = [i for i, (p, q) in enumerate(zip(x, y, strict=True)) if not np.array_equal(p, q)]
            if unlike:
                return f"column {column}, row {unlike[0]}: {x.iloc[unlike[0]]!r}, reference {y.iloc[unlike[0]]!r}"
            continue
        x, y = x.to_numpy(float), y.to_numpy(float)
        excess = np.abs(x - y) - (atol + rtol * np.abs(y))
        excess[(x == y) | (np.isnan(x) & np.isnan(y))] = -np.inf
        excess[np.isnan(x) != np.isnan(y)] = np.inf
        row = int(excess.argmax()) if len(excess) else 0
        if len(excess) and excess[row] > 0 and (worst is None or excess[row] > worst[0]):
            worst = (excess[row], f"column {column}, row {row}: {x[row]:.6g}, reference {y[row]:.6g}")
    return worst and f"{worst[1]} (tolerance {atol:g} + {rtol:g} |reference|)"
