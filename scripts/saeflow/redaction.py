"""Secrets stay in the environment: what is written names the variable, never its value."""

import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from saeflow.endpoints import key_variables

_SECRET_NAME = re.compile(
    r"(^|_)((PG|SSL)?PASS(WORD|WD|PHRASE)?|TOKEN|SECRETS?|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)(_|$)|_(KEY|PWD)$",
    re.I,
)
# Options of connections that hold a secret, and those that are words of other texts too, which count in a query alone.
_OPTION = (
    r"[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|(?:api|access|private|secret|client|server)_?key"
    r"|(?:access|auth|api|session|refresh)_?token)"
)
_IN_QUERY = rf"(?:{_OPTION}|pass|token|key|auth|sig|signature|credentials?)"
_SECRETS = (
    # <scheme>://<user>:<password>@<host>: as far as the last @, which a password may hold.
    re.compile(r"(?P<before>://[^\s/:@]*:)(?P<secret>\S+)(?P<after>@)"),
    # ?<option>=<value>&...
    re.compile(rf"(?P<before>[?&]{_IN_QUERY}=)(?P<secret>[^\s&]+)(?P<after>)", re.I),
    # The same encoded, inside of another value.
    re.compile(rf"(?P<before>\b{_IN_QUERY}%3D)(?P<secret>[^\s&]+)(?P<after>)", re.I),
    # <option>=<value> and <option>='<value>' of a connection string, keyword or dict.
    re.compile(
        rf"(?P<before>\b{_OPTION}[\"']?\s*[=:]\s*)"
        r"(?P<secret>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?:[^\s\\;&]|\\.)+)(?P<after>)",
        re.I,
    ),
    re.compile(r"(?P<before>\bauthorization[\"']?\s*[=:]\s*[\"']?(?:\w+\s+)?)(?P<secret>[^\s\"']+)(?P<after>)", re.I),
)
# In a URL that is the whole text a password may hold spaces too.
_LOGIN_OF_ALL = re.compile(r"\s*[\w+.-]+://[^:/]*:(?P<secret>[^@]*)@")
_CONNECTION = re.compile(r"://|^\s*\w+\s*=")
_PASSWORD = re.compile(
    r"://[^\s/:@]*:[^\s@]+@|://\S*[?&](ssl)?(passw(or)?d|passphrase|pwd)=|^\s*(\w+\s*=.*\s)?(ssl)?passw(or)?d\s*=", re.I
)
# Shorter values are words of other texts as well.
_SHORTEST = 6


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is a password, a token or a key."""
    return bool(_SECRET_NAME.search(name))


def has_password(text: str) -> bool:
    """Whether a text holds a URL or a connection string with a password."""
    return bool(_PASSWORD.search(text))


def redact(text: str, *sources: str) -> str:
    """Text with the value of each secret variable replaced by `$<NAME>`, and each password by `***`.

    Arguments:
        sources: URLs or connection strings whose passwords the text may hold in any spelling.
    """
    known = {form: "***" for source in sources for form in _forms_of(source)} | dict(_of_environment())
    known = {form: label for form, label in known.items() if len(form) >= _SHORTEST}
    if known:
        longest_first = sorted(known, key=len, reverse=True)
        text = re.sub("|".join(map(re.escape, longest_first)), lambda match: known[match[0]], text)
    for pattern in _SECRETS:
        text = pattern.sub(r"\g<before>***\g<after>", text)
    return text


def _of_environment() -> Iterator[tuple[str, str]]:
    """What must not be written, and the variable of each."""
    keys = key_variables()
    for name, value in os.environ.items():
        forms = _spellings(value) if is_secret_name(name) or name in keys else set()
        if _CONNECTION.search(value) and (found := _forms_of(value)):
            forms |= {value} | found
        yield from ((form, f"${name}") for form in forms)


def _forms_of(source: str) -> set[str]:
    """Passwords of a URL or connection string, each in every spelling."""
    found = set()
    for text in {source, unquote(source), unquote_plus(source)}:
        matches = [match for pattern in _SECRETS for match in pattern.finditer(text)]
        matches += filter(None, [_LOGIN_OF_ALL.match(text)])
        found |= {match["secret"] for match in matches}
    found |= {re.split("%20|%26|%3B", secret, flags=re.I)[0] for secret in found}  # another option may follow
    unquoted = {re.sub(r"\\(.)", r"\1", _inside_quotes(secret)) for secret in found}
    return {form for secret in found | unquoted for form in _spellings(secret)}


def _inside_quotes(secret: str) -> str:
    """What stands between the quotes; a secret may end with one of its own."""
    is_quoted = len(secret) > 1 and secret[0] == secret[-1] and secret[0] in "'\""
    return secret[1:-1] if is_quoted else secret.strip("'\"")


def _spellings(secret: str) -> set[str]:
    """A secret as it is, decoded, encoded, and as Python and JSON write it."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    encoded = {form for one in plain for form in (quote(one), quote(one, safe=""), quote_plus(one))}
    written = {form for one in plain for form in (repr(one)[1:-1], json.dumps(one)[1:-1])}
    return plain | encoded | written
