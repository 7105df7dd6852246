"""The text around the activations that a latent is known by: windows of tokens, each with its activation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saeflow.features.code_file import CodeFile


@dataclass(frozen=True)
class Windows:
    """Tokens around some peaks, on a grid with room for all.

    Arguments:
        document: of each peak.  Shape [n].
        peak: place of the peak among the window's tokens.  Shape [n].
        start: place in the document of the window's first token.  Shape [n].
        inside: which places of the grid hold a token of the window.  Shape [n, room].
        tokens: ids.  Shape [n, room].
        activations: of the peak's latent.  Shape [n, room].
    """

    document: Int[np.ndarray, " n"]
    peak: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]
    inside: Bool[np.ndarray, "n room"]
    tokens: Int[np.ndarray, "n room"]
    activations: Float[np.ndarray, "n room"]

    def flat(self) -> tuple[Int[np.ndarray, " offsets"], Int[np.ndarray, " total"], Float[np.ndarray, " total"]]:
        """Where each window begins, and the end; then ids and activations of all windows, one after another."""
        offsets = np.concatenate([[0], self.inside.sum(1).cumsum()])
        return offsets, self.tokens[self.inside], self.activations[self.inside]


def windows(
    store: Any,
    codes: CodeFile,
    rows: Int[np.ndarray, " n"],
    latents: Int[np.ndarray, " n"],
    *,
    before: int,
    after: int,
) -> Windows:
    """Tokens before and after some rows, no farther than their document, their context and special tokens between.

    Arguments:
        store: activation store with the source columns document, position, context and token, its rows in the order of
            the text.
        codes: of its rows.
        rows: of the peaks.
        latents: whose activations are shown, for each peak.
        before, after: most tokens on either side.
    """
    steps = np.arange(-before, after + 1)
    grid = rows[:, None] + steps
    there = (grid >= 0) & (grid < len(store))
    wanted, where = np.unique(np.where(there, grid, rows[:, None]), return_inverse=True)
    columns = [store.source_columns.index(name) for name in ("document", "position", "context", "token")]
    source = store.source(wanted).numpy()[:, columns]
    document, position, context, token = np.moveaxis(source[where.reshape(grid.shape)], -1, 0)
    same = (document == document[:, before, None]) & (context == context[:, before, None])
    # Rows follow one another where a special token, which has none, does not stand between them.
    inside = there & same & (position - position[:, before, None] == steps)
    n, room = grid.shape
    values = np.zeros((n, room), np.float32)
    at = np.nonzero(inside)
    values[at] = codes.values_at(grid[at], latents[at[0]])
    first = inside.argmax(1)
    start = position[np.arange(n), first]
    return Windows(document[:, before], before - first, start, inside, token, values)
