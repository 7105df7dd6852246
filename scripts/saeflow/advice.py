"""What to do about a failed job whose disk or whose input is at fault."""

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

_AGAIN = "run the same command again"


def advice(error: BaseException, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Lines that say which file is at fault and what to do; none for an error with another cause.

    Arguments:
        error: what the job raised; its cause may be the disk's error.
        inputs, outputs: of the job. Outputs lie in the study's folder, `results/<study>`; inputs elsewhere are the
            user's own, whose loss nothing makes good.
    """
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


def _of_the_file_system(error: BaseException | None) -> Iterator[tuple[int, str | None]]:
    """Number and file of each error of the file system that led to this one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            yield error.errno, error.filename
        elif found := re.search(r"\(os error (\d+)\)", str(error)):  # as libraries in Rust write it
            yield int(found[1]), None
        error = error.__cause__ or error.__context__
