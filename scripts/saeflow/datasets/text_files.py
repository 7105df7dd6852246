"""Text files as people bring them: UTF-8 whatever the locale, with or without a byte order mark, any ends of lines."""

from collections.abc import Iterator
from pathlib import Path

LONGEST = 100_000_000
"""Characters of a line or a document, at most: beyond, a file has no lines, or no separator."""
MARK = "\ufeff"
"""Of the byte order, which UTF-8 has no need of: no character of the text."""
_OTHER_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_POINTER = b"version https://git-lfs.github.com/spec/"


class TextError(ValueError):
    """Text that cannot be read as asked; names the folder, file or column and what would be right."""


def lines(path: Path) -> Iterator[str]:
    """Lines of a file, each with its end, a line break; byte order marks are left out.

    Raises:
        TextError: no such file, a pointer of Git LFS in its place, another encoding, a zero byte, or a line without
            end.
    """
    try:
        _check_start(path)
        with path.open(encoding="utf-8") as file:
            number = 0
            while line := file.readline(LONGEST):
                number += 1
                if len(line) == LONGEST and not line.endswith("\n"):
                    raise TextError(f"{path}, line {number}: longer than {LONGEST:,} characters; divide it")
                if "\0" in line:
                    raise TextError(f"{path}, line {number}: has a zero byte, which no text has; save it as UTF-8")
                # Also in front of later lines: files that were joined have theirs inside.
                yield line.removeprefix(MARK)
    except UnicodeDecodeError:
        raise TextError(f"{path}, line {_first_undecodable(path)}: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise TextError(f"{path}: cannot be read: {error.strerror}") from error


def read(path: Path) -> str:
    """A whole file; raises TextError as `lines` does."""
    return "".join(lines(path))


def _check_start(path: Path) -> None:
    """Refuse by name what the first bytes tell."""
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(4)
    for mark, encoding in _OTHER_MARKS.items():
        if start.startswith(mark):
            raise TextError(f"{path}: {encoding}, not UTF-8; save it as UTF-8")


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in place of a file that it did not fetch.

    Raises:
        TextError: it is one.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise TextError(f"{path}: a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")


def _first_undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    with path.open("rb") as file:
        return next(number for number, line in enumerate(file, 1) if not _is_utf8(line))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
