"""Send the feature batches of a package to Neuronpedia, or to a server that speaks as it does."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from saeflow import endpoints
from saeflow.redaction import redact

KEY = "NEURONPEDIA_API_KEY"
SERVER = "https://www.neuronpedia.org"
PATH = "/api/feature/upload-batch"
_AGAIN = (429, 502, 503, 504)


class UploadError(RuntimeError):
    """An upload that did not go through; says which batch, what the server said, and how to go on."""


def send(
    batches: list[Path],
    *,
    server: str = SERVER,
    first: int = 0,
    attempts: int = 4,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Path, str]]:
    """Send batches one after another, each as it is on disk; a busy server is asked again after 1, 2, 4 seconds.

    A batch that is there already is created again by the server only where it has no such feature, so that sending
    twice does no harm. The source set must have been made at the server by the owner of the key.

    Arguments:
        batches: `upload/batch-*.json` of a package, which has been verified.
        server: scheme and host. The key goes there and nowhere else; only a loopback host may do without TLS, and is
            asked without a proxy.
        first: number of the batch to begin with, to go on after an error.
    Yields:
        each batch, and what the server said.
    Raises:
        UploadError: no key, a refusal, or a server that cannot be reached.
    """
    key = os.environ.get(KEY)
    if not key:
        raise UploadError(f"{KEY} is not set: nothing is sent without a key; Neuronpedia shows yours under Settings")
    if not re.fullmatch(endpoints.URL, server):
        raise UploadError(f"{redact(server)!r}: a server is written https://host, without user, query and fragment")
    if not server.startswith("https:") and not endpoints.is_loopback(server):
        raise UploadError(f"{server}: a key is sent over https only")
    for number, batch in enumerate(batches[first:], first):
        yield batch, _post(server.rstrip("/") + PATH, batch, key, number, attempts, wait)


def _post(url: str, batch: Path, key: str, number: int, attempts: int, wait: Callable[[float], None]) -> str:
    headers = {"Content-Type": "application/json", "X-Api-Key": key, "User-Agent": "saeflow"}
    request = urllib.request.Request(url, batch.read_bytes(), headers, method="POST")
    on = f"; go on with --first {number}"
    for attempt in range(attempts):
        try:
            with endpoints.opener(url).open(request, timeout=120) as answer:
                return json.loads(answer.read()).get("message", "accepted")
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace").strip()
            if error.code in _AGAIN and attempt + 1 < attempts:
                wait(2.0**attempt)
                continue
            raise UploadError(f"{batch.name}: the server answered {error.code}: {said or error.reason}{on}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            if attempt + 1 < attempts:
                wait(2.0**attempt)
                continue
            raise UploadError(f"{batch.name}: {url} cannot be reached ({error}){on}") from None
        except (json.JSONDecodeError, AttributeError):
            raise UploadError(f"{batch.name}: {url} did not answer as Neuronpedia does{on}") from None
    raise AssertionError("unreachable")
