"""Text of others on a terminal."""

import unicodedata

MOST_CHARACTERS = 400
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def plain(text: object, most: int = MOST_CHARACTERS) -> str:
    """One short line without control characters: what a terminal, or a reader, could be misled by shows as its code."""
    shown = str(text).replace("\n", " ")
    cut = shown if len(shown) <= most else shown[: most - 1] + "…"
    return "".join(c if unicodedata.category(c) not in _HIDDEN else f"\\u{ord(c):04x}" for c in cut)
