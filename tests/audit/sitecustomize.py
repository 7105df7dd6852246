"""What a Python process runs, sends and writes, noted by its own audit hook.

With this file's folder in PYTHONPATH every process notes what it does in the file that SAEFLOW_AUDIT names; a test that
imports it notes what happens inside of `watching`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate"}
_SENDS = {"socket.connect", "socket.getaddrinfo", "socket.sendto"}
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "pickle.find_class"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_notes: list[str] | None = None


def _said(event: str, arguments: tuple) -> str | None:
    """A line for what an event does to the world; None for what does nothing."""
    if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & _WRITING:
        return f"write {os.path.realpath(arguments[0])}"
    if event in _CHANGES:
        path = os.fsdecode(arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0])
        folder = arguments[-1] if isinstance(arguments[-1], int) and event != "os.truncate" else -1
        return (
            f"write {os.path.realpath(os.path.join(f'/proc/self/fd/{folder}', path) if folder >= 0 else path)} {event}"
        )
    if event in _SENDS:
        return f"send {arguments[1:]}"
    if event in _RUNS or event == "subprocess.Popen":
        return f"run {arguments[:2]}"
    if event == "exec" and os.sep in (name := arguments[0].co_filename):
        return f"exec {os.path.realpath(name)}"
    return None


def _hook(event: str, arguments: tuple) -> None:
    global _notes
    if _notes is None:
        return
    notes, _notes = _notes, None
    try:
        if line := _said(event, arguments):
            notes.append(line)
            if _file is not None:
                os.write(_file, f"{line}\n".encode())
    finally:
        _notes = notes


@contextmanager
def watching() -> Iterator[list[str]]:
    """What this process does inside."""
    global _notes
    notes = _notes = []
    try:
        yield notes
    finally:
        _notes = None


_file = None
if "SAEFLOW_AUDIT" in os.environ:
    _file = os.open(os.environ["SAEFLOW_AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _notes = []
sys.addaudithook(_hook)
