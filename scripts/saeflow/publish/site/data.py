"""Data of the site: JSON in script files, because a page opened from disk may load scripts but fetch nothing."""

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def write(path: Path, key: str, content: Any, digits: int = 5) -> None:
    """Write content under a key: `saeflow.put(key, content)` is called when a page loads the file.

    Arguments:
        digits: significant ones of floats; NaN is null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(plain(content, digits), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Neither ends a script nor a line of one.
    body = body.replace("</", "<\\/").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    path.write_text(f"saeflow.put({json.dumps(key)},{body});\n", encoding="utf-8")


def read(path: Path) -> Any:
    """Content of a file that `write` has written."""
    text = path.read_text(encoding="utf-8").removeprefix("saeflow.put(").removesuffix(");\n")
    _, end = json.JSONDecoder().raw_decode(text)
    return json.loads(text[end + 1 :])


def plain(content: Any, digits: int) -> Any:
    """Builtins of arrays, tables and numbers, as they are written."""
    match content:
        case pd.DataFrame():
            return {name: plain(content[name].tolist(), digits) for name in content.columns}
        case np.ndarray():
            return plain(content.tolist(), digits)
        case np.generic():
            return plain(content.item(), digits)
        case Mapping():
            return {str(key): plain(value, digits) for key, value in content.items()}
        case list() | tuple():
            return [plain(value, digits) for value in content]
        case float():
            return _short(content, digits)
    return content


def _short(number: float, digits: int) -> float | int | None:
    """Significant digits, without a decimal point where none is needed: most activations of a context are 0."""
    if not math.isfinite(number):
        return None
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def packed(values: np.ndarray) -> str:
    """Bytes of a uint8 or int8 array in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
