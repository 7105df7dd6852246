"""Studies that are nearly right: shipped ones with some values, keys, entries, lines or bytes changed."""

import copy
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# Those whose files are there: they build their own images and text.
SHIPPED = (
    "../config",
    "smoke",
    "language_smoke",
    "geometry_smoke",
    "inversion_smoke",
    "mnist",
    "mnist_injection",
    "quick",
)
SCALARS = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 16, 64, -1, 1.0, 64.0, 0.5, 0.1, 1e-3, 1e3, 2**31, 2**63, 10**30, 1e30, 1e-300),
    *(float("inf"), float("-inf"), float("nan"), True, False, None, "", "x", "64", "1e-3", "yes", "2026-02-30", "a b"),
    *("topk", "relu", "full", "target", "source", "batchtopk", "last.pre", "first.post", "FFN", "x" * 5000, "\x1b[31m"),
    *([], {}, [1, 1], [1, 2, 3], ["x"], {"x": 1}, [[]], {"architecture": "topk", "d_sae": 8, "k": 2}, "{a}", "é\u202e"),
]
KEYS = ["x", "seeds", "k", "steps", "variants", "study", "no", "1", "d_sae", "names with spaces", "hook_points"]
SNIPPETS = [
    "\t",
    ": ",
    "- ",
    "[",
    "}",
    "'",
    '"',
    "*a",
    "&a ",
    "!!x ",
    "<<: *a",
    "010",
    "1:30",
    "@",
    "#",
    "\n",
    " ",
    "\x07",
    "é",
]


def studies(draw: random.Random) -> bytes:
    """A file that may be a study."""
    content = copy.deepcopy(_shipped(draw.choice(SHIPPED)))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        _change_value(content, draw)
    text = yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    if draw.random() < 0.3:
        text = _change_text(text, draw)
    raw = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.05:
        at = draw.randrange(len(raw) + 1)
        raw = raw[:at] + draw.choice((b"\xff", b"\x00", b"\xe9")) + raw[at:]
    return raw


@cache
def _shipped(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config/studies" / f"{name}.yaml").read_text(encoding="utf-8"))


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every section or list with each of its keys or places."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _change_value(content: dict, draw: random.Random) -> None:
    places = list(_places(content))
    if not places:
        return
    node, key = draw.choice(places)
    if draw.random() < 0.4:
        numbers = [(node, key) for node, key in places if isinstance(node[key], int | float)]
        node, key = draw.choice(numbers or places)
        if isinstance(node[key], int | float):
            node[key] = type(node[key])(node[key] * draw.choice((0.5, 1, 2)) + draw.choice((0, 1)))
        return
    match draw.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        case 1:
            node[draw.choice(KEYS)] = copy.deepcopy(draw.choice(SCALARS))
        case 2:
            other, there = draw.choice(places)
            node[key] = copy.deepcopy(other[there])
        case _:
            node[key] = copy.deepcopy(draw.choice(SCALARS))


def _change_text(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    line = draw.randrange(len(lines))
    at = draw.randrange(len(lines[line]) + 1)
    match draw.randrange(5):
        case 0:
            lines.insert(draw.randrange(len(lines)), lines[line])
        case 1:
            del lines[line]
        case 2:
            lines[line] = lines[line][:at] + draw.choice(SNIPPETS) + lines[line][at:]
        case 3:
            lines[line] = lines[line][:at] + lines[line][at + 1 :]
        case _:
            lines = [*lines[:line], lines[line][:at]]
    return "\n".join(lines)
