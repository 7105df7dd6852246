"""Text of others on a terminal: what a model's tokens, a label or a server says must not steer it."""

import json


def printable(text: str, *, lines: bool = False) -> str:
    """Text without what would steer a terminal; a line break becomes a sign.

    Arguments:
        lines: whether line breaks stay what they are.
    """
    shown = {"\n": "\n" if lines else "↵"}
    return "".join(c if c.isprintable() else shown.get(c, "·") for c in text)


def escaped(content: str, encoding: str = "utf-8") -> str:
    """JSON that is equal when it is read, with escape sequences for what steers a terminal or an encoding lacks."""

    def shown(c: str) -> bool:
        return (c.isprintable() or c == "\n") and bool(c.encode(encoding, "ignore"))

    return "".join(c if shown(c) else json.dumps(c)[1:-1] for c in content)


def plain(text: object, most: int = 400) -> str:
    """One short printable line, of what somebody else chose the length and the characters of."""
    shown = str(text)
    return printable(shown if len(shown) <= most else shown[: most - 1] + "…")
