"""What the top contexts of a language feature say: the token that it peaks on, how consistent that is, examples."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EXAMPLES = 5
"""Contexts that the catalog keeps of each feature, as text around the peak; all of them stay in `contexts.parquet`."""
_BEFORE, _AFTER = 12, 6  # tokens of an example around its peak
_ROWS = 4096  # contexts held at a time


class Peak(NamedTuple):
    """The peak of one context."""

    feature: int
    activation: float
    token: str
    previous: str
    """Token before the peak; empty at the start of the context."""
    before: str
    after: str
    document: int


def plain(token: str) -> str:
    """A token without the marks of a space before it, in lower case; what is nothing else stays as it is."""
    return token.replace("▁", " ").replace("Ġ", " ").strip().lower() or token


def text_of(tokens: Sequence[str]) -> str:
    """Tokens as text."""
    return "".join(tokens).replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")


def peaks(contexts: Path) -> Iterator[Peak]:
    """The peak of each context, in the order of the file; a few thousand contexts are in memory at a time.

    Raises:
        ValueError: a peak outside its context; names file and row.
    """
    columns = ["feature", "activation", "position", "document", "tokens"]
    row = 0
    for batch in pq.ParquetFile(contexts).iter_batches(_ROWS, columns=columns):
        lists: pa.ListArray = batch["tokens"]
        starts, tokens = lists.offsets.to_numpy(), lists.values.to_pylist()
        position = batch["position"].to_numpy()
        outside = np.flatnonzero((position < 0) | (starts[:-1] + position >= starts[1:]))
        if len(outside):
            first = int(outside[0])
            raise ValueError(
                f"{contexts}, row {row + first}: position {position[first]} is outside its context of "
                f"{starts[first + 1] - starts[first]} tokens"
            )
        facts = (batch[name].to_pylist() for name in ("feature", "activation", "document"))
        for feature, activation, document, at, start, end in zip(
            *facts, (starts[:-1] + position).tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True
        ):
            yield Peak(
                feature,
                activation,
                tokens[at],
                tokens[at - 1] if at > start else "",
                text_of(tokens[max(start, at - _BEFORE) : at]),
                text_of(tokens[at + 1 : min(end, at + 1 + _AFTER)]),
                document,
            )
        row += len(batch)


def consistency(tokens: Sequence[str]) -> float | None:
    """Probability that two different contexts have the same token; none for fewer than two contexts.

    The unbiased estimate of sum p_t^2: chance is what it is for tokens drawn from the corpus.
    """
    n = len(tokens)
    return sum(c * (c - 1) for c in Counter(tokens).values()) / (n * (n - 1)) if n > 1 else None


def reading(found: Sequence[Peak], promoted: Sequence[str]) -> tuple[float | None, str]:
    """Interpretability in [0, 1] and label of a feature.

    Arguments:
        found: peaks of its top contexts.
        promoted: tokens whose logits its decoder row raises, most first.
    """
    at, before = ([plain(token) for token in column] for column in _columns(found))
    here, ahead = consistency(at), consistency(before)
    follows = ahead is not None and here is not None and ahead > here
    (tokens, verb) = (before, "follows") if follows else (at, "peaks on")
    common = Counter(tokens).most_common(3)
    parts = []
    if common:
        first, n = common[0]
        share = n / len(tokens)
        if share >= 0.5:
            parts.append(f"{verb} {first!r} ({share:.0%} of its top contexts)")
        else:
            parts.append(f"{verb} {', '.join(repr(token) for token, _ in common)} among others")
    if promoted:
        parts.append("promotes " + ", ".join(repr(plain(token)) for token in promoted[:3]))
    return (ahead if follows else here), "; ".join(parts)


def examples(found: Sequence[Peak]) -> list[dict[str, Any]]:
    """The first contexts as text around the peak, for the catalog."""
    return [
        {
            "activation": peak.activation,
            "before": peak.before,
            "token": text_of([peak.token]),
            "after": peak.after,
            "document": peak.document,
        }
        for peak in found[:EXAMPLES]
    ]


def _columns(found: Sequence[Peak]) -> tuple[list[str], list[str]]:
    return [peak.token for peak in found], [peak.previous for peak in found]
