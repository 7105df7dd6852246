"""Hosts that text may be sent to, and the key of each: the environment of whoever runs a study says so, no file does.

SAEFLOW_ENDPOINTS="https://models.example=EXAMPLE_KEY http://localhost:8080" allows two, the first with the key that the
environment variable EXAMPLE_KEY holds.
"""

import os
import re
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

VARIABLE = "SAEFLOW_ENDPOINTS"
URL = r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$"
"""A URL that every reader takes for the same host: no user, query or fragment, names in ASCII (punycode)."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"https": 443, "http": 80}
_ENTRY = re.compile(r"(?P<url>[^=\s]+)(=(?P<key>[A-Za-z_][A-Za-z0-9_]*))?")


class EndpointError(RuntimeError):
    """An endpoint that may not be asked, or gives no answer; says what to do, never a secret."""


def authorize(url: str) -> str | None:
    """The key to send to a URL's host; None for one that takes none.

    Raises:
        EndpointError: the environment does not allow the host, or lacks its key; the URL is none, or not of https.
    """
    origin = _origin(url)
    allowed = _allowed()
    if origin not in allowed:
        host = f"{origin[0]}://{_in_url(origin)}"
        raise EndpointError(
            f"{url}: nothing is sent to a host that your environment does not allow; to allow this one, set "
            f"{VARIABLE}={host}, or {VARIABLE}={host}=NAME if the environment variable NAME holds its key"
        )
    name = allowed[origin]
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise EndpointError(f"environment variable {name}: not set, but {VARIABLE} says that it holds the key of {url}")
    if not key.isascii() or not key.isprintable():
        raise EndpointError(f"environment variable {name}: holds what no key does, such as a line break")
    return key


def key_variables() -> set[str]:
    """Environment variables that hold keys, as far as SAEFLOW_ENDPOINTS can be read."""
    entries = map(_ENTRY.fullmatch, os.environ.get(VARIABLE, "").replace(",", " ").split())
    return {entry["key"] for entry in entries if entry and entry["key"]}


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def opener(url: str) -> urllib.request.OpenerDirector:
    """What sends to one host alone: it follows no redirect, and asks no proxy on the way to this machine."""
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    return urllib.request.build_opener(_NoRedirect, *handlers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


_Origin = tuple[str, str, int]


def _origin(url: str) -> _Origin:
    """Scheme, host and port.

    Raises:
        EndpointError: no URL of a host, or one that text would go to in the clear.
    """
    if not re.fullmatch(URL, url):
        raise EndpointError(
            f"{VARIABLE}: a host is written https://host or https://host:port, in ASCII, without user, query, fragment"
        )
    parts = urlsplit(url)
    try:
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        raise EndpointError(f"{url}: its port is none, the highest is 65535") from None
    if parts.scheme != "https" and not is_loopback(url):
        raise EndpointError(f"{url}: text and key would go in the clear; use https")
    return parts.scheme, parts.hostname or "", port


def _in_url(origin: _Origin) -> str:
    scheme, host, port = origin
    host = f"[{host}]" if ":" in host else host
    return host if port == _PORTS[scheme] else f"{host}:{port}"


def _allowed() -> Mapping[_Origin, str | None]:
    """Variable with the key of each host that the environment allows."""
    found = {}
    for entry in os.environ.get(VARIABLE, "").replace(",", " ").split():
        match = _ENTRY.fullmatch(entry)
        if not match:
            raise EndpointError(f"{VARIABLE}: an entry is https://host or https://host=NAME, NAME a variable's name")
        found[_origin(match["url"])] = match["key"]
    return found
