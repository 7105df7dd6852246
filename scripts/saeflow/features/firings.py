"""Sparse codes of many activation vectors as one list of (row, latent, value)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Encoder(Protocol):
    """The part of an SAE that the feature analysis reads."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]: ...


class Rows(Protocol):
    """The part of an activation store that the feature analysis reads."""

    shape: tuple[int, int]

    def rows(self, indices: Sequence[int]) -> Float[Tensor, "rows d_in"]: ...


@dataclass(frozen=True)
class Firings:
    """The nonzero codes z[rows[e], latents[e]] = values[e], sorted by row, then by latent."""

    rows: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    n_rows: int
    """Rows that were encoded, those without any firing among them."""
    d_sae: int

    def counts(self) -> Int[Tensor, " d_sae"]:
        """Number of rows on which each latent fires."""
        return torch.bincount(self.latents, minlength=self.d_sae)

    def dense(self, latents: range) -> Float[Tensor, "rows latents"]:
        """Codes of some neighbouring latents."""
        inside = (self.latents >= latents.start) & (self.latents < latents.stop)
        codes = torch.zeros(self.n_rows, len(latents), dtype=self.values.dtype, device=self.values.device)
        codes[self.rows[inside], self.latents[inside] - latents.start] = self.values[inside]
        return codes

    def active(self, latents: range) -> Bool[Tensor, "rows latents"]:
        """Whether each of some neighbouring latents fires."""
        return self.dense(latents) != 0


@torch.no_grad()
def encode(sae: Encoder, x: Float[Tensor, "batch d_in"]) -> Firings:
    """Firings of one batch of activation vectors, in the SAE's own units."""
    codes = sae.encode(x)
    rows, latents = codes.nonzero(as_tuple=True)
    return Firings(rows, latents, codes[rows, latents], len(x), codes.shape[1])


def stream(sae: Encoder, store: Rows, batch_rows: int = 4096, device: torch.device | str = "cpu") -> Iterator[Firings]:
    """Firings of a store's rows in their order, a batch at a time: memory does not grow with the store."""
    n_rows = store.shape[0]
    for start in range(0, n_rows, batch_rows):
        rows = torch.as_tensor(store.rows(range(start, min(start + batch_rows, n_rows))))
        yield encode(sae, rows.to(device, torch.float32))


def concatenate(batches: Iterable[Firings]) -> Firings:
    """Firings of all batches, rows numbered through."""
    parts, rows, n_rows = [], [], 0
    for part in batches:
        parts.append(part)
        rows.append(part.rows + n_rows)
        n_rows += part.n_rows
    if not parts:
        raise ValueError("batches: none given, one at least is needed")
    latents, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "values"))
    return Firings(torch.cat(rows), latents, values, n_rows, parts[0].d_sae)


def blocks(total: int, size: int) -> Iterator[range]:
    """Neighbouring ranges of at most `size` that cover range(total)."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
