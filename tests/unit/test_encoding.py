"""Text files are UTF-8 whatever the locale: every call that opens one says so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = ("read_text", "write_text", "FileHandler", "NamedTemporaryFile", "TextIOWrapper")


def calls_without_encoding(source: str) -> Iterator[str]:
    """Calls that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or {"encoding", None} & {keyword.arg for keyword in node.keywords}:
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        of_subprocess = any(keyword.arg in ("text", "universal_newlines") for keyword in node.keywords)
        if name in TEXT or of_subprocess or (name == "open" and _opens_text(node)):
            yield ast.unparse(node)


def _opens_text(call: ast.Call) -> bool:
    """`open(path, mode)`, `path.open(mode)`, `gzip.open(path, mode)`; not `Store.open(path)`."""
    owner = getattr(getattr(call.func, "value", None), "id", "")
    of_path = isinstance(call.func, ast.Attribute) and owner not in ("gzip", "bz2", "lzma", "io")
    modes = [k.value for k in call.keywords if k.arg == "mode"] or call.args[0 if of_path else 1 :][:1]
    if not modes:
        return not owner[:1].isupper() and owner != "gzip" and not (of_path and call.args)
    mode = getattr(modes[0], "value", None)
    return isinstance(mode, str) and set(mode) <= set("rwxat+") and (owner != "gzip" or "t" in mode)


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale():
    files = (path for folder in ("scripts", "envs") for path in sorted((ROOT / folder).rglob("*.py")))
    found = {str(path.relative_to(ROOT)): list(calls_without_encoding(path.read_text("utf-8"))) for path in files}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("open(path, mode='w')", True),
        ("path.open()", True),
        ("path.open('w')", True),
        ("gzip.open(path, 'rt')", True),
        ("subprocess.run(command, text=True)", True),
        ("logging.FileHandler(path)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("gzip.open(path)", False),
        ("ActivationStore.open(path)", False),
        ("os.open(path, os.O_RDONLY)", False),
    ],
)
def test_the_check_tells_text_from_bytes(call, found):
    assert bool(list(calls_without_encoding(call))) is found
