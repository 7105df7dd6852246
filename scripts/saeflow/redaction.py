"""Secrets stay in the environment: what is written names the variable, never its value."""

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

_SECRET_NAME = re.compile(
    r"(^|_)((PG)?PASS(WORD|WD|PHRASE)?|TOKEN|SECRETS?|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)(_|$)", re.I
)
_LOGIN = re.compile(r"(?<=://)([^\s/:@]*):([^\s@]+)@")
# Shorter values are words of other texts as well.
_SHORTEST = 6


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is a password, a token or a key."""
    return bool(_SECRET_NAME.search(name))


def has_password(text: str) -> bool:
    """Whether a text holds a URL with a password: `<scheme>://<user>:<password>@<host>`."""
    return bool(_LOGIN.search(text))


def redact(text: str) -> str:
    """Text with the value of each secret variable replaced by `$<NAME>`, and the password of each URL by `***`."""
    for value, name in sorted(_secrets(), key=lambda secret: -len(secret[0])):
        text = text.replace(value, f"${name}")
    return _LOGIN.sub(r"\1:***@", text)


def _secrets() -> Iterator[tuple[str, str]]:
    """Values that must not be written, and the variable of each."""
    for name, value in os.environ.items():
        forms = {value} if is_secret_name(name) else set()
        if login := _LOGIN.search(value):
            forms |= {value, login[2], unquote(login[2])}
        yield from ((form, name) for form in forms if len(form) >= _SHORTEST)
