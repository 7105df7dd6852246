"""How some latents fire, token by token: what explanations are made from and tested on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from saeflow.inversion.optimization.objective import Readout
from saeflow.sae.architectures import SparseAutoencoder

_ROWS = 8192
NONE = -1
PLACES = 4
"""Tokens that explanations read: the current one and three before it."""


@dataclass(frozen=True)
class Readings:
    """Tokens of a text and the activations of some latents on them.

    Arguments:
        places: ids of the token, in the order of the text, and of those before it in the same document and context,
            the nearest first; NONE where there is none.  Shape [n, PLACES].
        context: number of each token's context, ascending.  Shape [n].
        activations: 0 where a latent does not fire.  Shape [n, n_features].
        scores: pre-activations of the same latents.  Shape [n, n_features].
    """

    places: Int[np.ndarray, "n places"]
    context: Int[np.ndarray, " n"]
    activations: Float[np.ndarray, "n n_features"]
    scores: Float[np.ndarray, "n n_features"]

    @property
    def tokens(self) -> Int[np.ndarray, " n"]:
        return self.places[:, 0]

    @property
    def previous(self) -> Int[np.ndarray, " n"]:
        return self.places[:, 1]

    def windows(self, length: int) -> Int[np.ndarray, "n_windows length"]:
        """Rows of windows that do not overlap and stay inside one context; what does not fill one is left out."""
        starts = np.searchsorted(self.context, np.unique(self.context))
        ends = np.append(starts[1:], len(self.context))
        first = [np.arange(a, b - length + 1, length) for a, b in zip(starts, ends, strict=True)]
        return (np.concatenate(first) if first else np.empty(0, np.int64))[:, None] + np.arange(length)


def read(sae: SparseAutoencoder, store: Any, features: Sequence[int], most_tokens: int | None = None) -> Readings:
    """Pass over a store once, or over its first tokens; only the named latents are kept.

    Arguments:
        sae: on the device where it encodes.
        store: activations with the source columns document, position, context and token, in the order of the text.
        features: latents.
        most_tokens: all, if not given.
    """
    n = min(len(store), most_tokens or len(store))
    chosen = torch.as_tensor(list(features))
    readout, parts, first = Readout.of(sae, chosen), [], 0
    for x in store.batches(_ROWS, shuffle=None, epochs=1, device=sae.device):
        x = x[: n - first]
        with torch.no_grad():
            z = sae.encode(x)[:, chosen.to(sae.device)].float().cpu().numpy()
            parts.append((z, (x.float() @ readout.weight.T + readout.bias).cpu().numpy()))
        first += len(x)
        if first >= n:
            break
    columns = [store.source_columns.index(name) for name in ("document", "position", "context", "token")]
    document, position, context, token = store.source(slice(0, n))[:, columns].numpy().T
    follows = np.zeros(n, bool)
    follows[1:] = (np.diff(document) == 0) & (np.diff(context) == 0) & (np.diff(position) == 1)
    activations, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Readings(places_of(token, follows), context, activations, scores)


def places_of(tokens: Int[np.ndarray, " n"], follows: Bool[np.ndarray, " n"]) -> Int[np.ndarray, "n places"]:
    """Each token and those before it, as far as each follows the one before."""
    places = [tokens]
    for _ in range(PLACES - 1):
        places.append(np.where(follows, np.roll(places[-1], 1), NONE))
    return np.stack(places, axis=1)


def best_windows(readings: Readings, feature: int, n: int, before: int) -> list[list[int]]:
    """Tokens up to and with the peaks of a latent, at most one per context, the highest peak first.

    Arguments:
        readings: of the text.
        feature: column of the activations.
        n: windows, at most; none for a latent that never fires.
        before: tokens of a window, at most.
    """
    values = readings.activations[:, feature]
    found, seen = [], set()
    for row in np.argsort(-values, kind="stable"):
        if values[row] <= 0 or len(found) == n:
            break
        if readings.context[row] in seen:
            continue
        seen.add(readings.context[row])
        first = row
        while first > 0 and row - first + 1 < before and readings.previous[first] != NONE:
            first -= 1
        found.append(readings.tokens[first : row + 1].tolist())
    return found
