"""A study against its reference: digest by digest, or table by table within tolerances."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet


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
    """How the tables differ: the number that is furthest off, or the first entry of anything else that is another."""
    a = parquet.read_table(ours)
    try:
        b = parquet.read_table(reference)
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"the reference cannot be read ({str(error)[:200]!r})"
    if a.shape != b.shape or a.column_names != b.column_names:
        return f"shape {a.shape} with columns {a.column_names}, reference {b.shape} with {b.column_names}"
    worst = (0.0, "")
    for name in a.column_names:
        x, y = (_whole(table.column(name)) for table in (a, b))
        for excess, row, said in _differences(x, y, np.arange(len(x)), rtol, atol):
            if excess > worst[0]:
                worst = (excess, f"column {name}, row {row}: {said}")
    return worst[1] or None


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, words as such."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _differences(
    x: pa.Array, y: pa.Array, rows: np.ndarray, rtol: float, atol: float
) -> Iterator[tuple[float, int, str]]:
    """How far off, in which row and how, at most once for each level of lists; `rows` are the table's.

    A missing value is like another one, and like nothing else.
    """

    def first(unlike: np.ndarray, said: Callable[[int], str]) -> Iterator[tuple[float, int, str]]:
        if unlike.any():
            i = int(unlike.argmax())
            yield math.inf, int(rows[i]), said(i)

    def entries(i: int) -> str:
        return f"{x[i].as_py()!r:.200}, reference {y[i].as_py()!r:.200}"

    numbers = all(pa.types.is_floating(t) or pa.types.is_integer(t) for t in (x.type, y.type))
    if x.type != y.type and not numbers:
        yield from first(np.ones(len(x), bool), lambda i: f"a {x.type}, reference a {y.type}")
        return
    missing = [array.is_null().to_numpy(zero_copy_only=False) for array in (x, y)]
    if (missing[0] != missing[1]).any():
        yield from first(missing[0] != missing[1], entries)
        return
    x, y, rows = x.filter(pa.array(~missing[0])), y.filter(pa.array(~missing[0])), rows[~missing[0]]
    if numbers:
        u, v = (array.cast(pa.float64(), safe=False).to_numpy() for array in (x, y))
        excess = np.abs(u - v) - (atol + rtol * np.abs(v))
        excess[(u == v) | (np.isnan(u) & np.isnan(v))] = -np.inf
        excess[np.isnan(u) != np.isnan(v)] = np.inf
        if len(excess) and excess.max() > 0:
            i = int(excess.argmax())
            tolerance = f"(tolerance {atol:g} + {rtol:g} |reference|)"
            yield float(excess[i]), int(rows[i]), f"{u[i]:.6g}, reference {v[i]:.6g} {tolerance}"
    elif pa.types.is_struct(x.type):
        for field_of in x.type:
            yield from _differences(x.field(field_of.name), y.field(field_of.name), rows, rtol, atol)
    elif pa.types.is_list(x.type) or pa.types.is_large_list(x.type) or pa.types.is_fixed_size_list(x.type):
        lengths = [pc.list_value_length(array).to_numpy(zero_copy_only=False) for array in (x, y)]
        if (lengths[0] != lengths[1]).any():
            yield from first(lengths[0] != lengths[1], entries)
        else:
            yield from _differences(x.flatten(), y.flatten(), np.repeat(rows, lengths[0]), rtol, atol)
    else:
        yield from first(pc.not_equal(x, y).to_numpy(zero_copy_only=False), entries)
