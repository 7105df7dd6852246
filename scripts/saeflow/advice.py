"""What to do about a failed job whose disk, memory or input is at fault."""

import errno
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_AGAIN = "run the same command again"
# Keys that the memory of a job grows with, whatever the section; and those that it falls with.
_SIZES = ("batch_size", "chunk_rows", "context_size", "d_sae", "sizes", "parents", "children", "hidden", "width")
_SIZES += ("fragments", "synthetic_images", "most_prompts", "most_text")
_DIVISORS = ("accumulate", "shards")
_SHOWN = 12


def advice(
    error: BaseException, inputs: Sequence[str], outputs: Sequence[str], settings: Mapping[str, Any] | None = None
) -> list[str]:
    """Lines that say which file is at fault and what to do; none for an error with another cause.

    Arguments:
        error: what the job raised; its cause may be the disk's error.
        inputs, outputs: of the job. Outputs lie in the study's folder, `results/<study>`; inputs elsewhere are the
            user's own, whose loss nothing makes good.
        settings: `cfg` of the job.
    """
    if _is_memory(error):
        return [_less_memory(settings or {})]
    number, named = next(_of_the_file_system(error), (None, None))
    where = named or outputs[0] + (f" and {len(outputs) - 1} more" if len(outputs) > 1 else "")
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            folder = next(folder for folder in Path(named or outputs[0]).absolute().parents if folder.is_dir())
            free = shutil.disk_usage(folder).free / 1e6
            what = f"the disk or your quota is full, {free:.3g} MB are free; make room, then {_AGAIN}"
            return [f"{where}: {what}: finished jobs are kept"]
        case errno.EROFS | errno.EACCES | errno.EPERM:
            what = f"this user may not write there; mend its permissions or its mount, then {_AGAIN}"
            return [f"{where}: {what}: finished jobs are kept"]
    own = [path for path in inputs if Path(path).parts[:2] == Path(outputs[0]).parts[:2]]
    return [f"{path}: if it is damaged, delete it and {_AGAIN}: it is built anew" for path in own if path in str(error)]


def _that_led_to(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_the_file_system(error: BaseException) -> Iterator[tuple[int, str | None]]:
    """Number and file of each error of the file system that led to this one."""
    for one in _that_led_to(error):
        if isinstance(one, OSError) and one.errno:
            yield one.errno, one.filename
        elif found := re.search(r"\(os error (\d+)\)", str(one)):  # as libraries in Rust write it
            yield int(found[1]), None


def _is_memory(error: BaseException) -> bool:
    """Whether memory was asked for and not given, of the machine or of a GPU, by whatever library."""
    said = re.compile(
        r"out of memory|(can't|cannot|unable to) allocate|not enough memory|bad_alloc|ALLOC_FAILED|array is too big"
        "|storage size calculation overflowed",
        re.IGNORECASE,
    )
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ == "OutOfMemoryError"
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or (isinstance(one, RuntimeError | ValueError) and said.search(str(one)) is not None)
        for one in _that_led_to(error)
    )


def _less_memory(settings: Mapping[str, Any]) -> str:
    """Which keys of a job lower what it needs, with their values."""
    smaller, larger = (
        [f"{key} ({value})" for key, value in _numbers(settings) if key.rpartition(".")[2] in names]
        for names in (_SIZES, _DIVISORS)
    )
    keys = f"lower {_listed(smaller)}" if smaller else "lower d_sae of the SAEs, or batch_size"
    if larger:
        keys += f"; or raise {_listed(larger)}"
    return f"out of memory: {keys}; or run fewer jobs at a time, or on a machine with more memory; then {_AGAIN}"


def _numbers(settings: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of a dict of dicts that hold numbers or lists, with the sections around them."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{inside}{name}.")
        elif value is not None:
            yield f"{inside}{name}", value


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
