"""Sparse latents of many activation vectors, without the zeros."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class Codes:
    """Active latents in compressed sparse rows: row i owns the entries offsets[i] to offsets[i + 1].

    Arguments:
        values: positive latent values, row after row.  Shape [n_active].
        indices: their latents, ascending within a row, int32.  Shape [n_active].
        offsets: where each row starts, and the end, int64.  Shape [n + 1].
        d_sae: number of latents.
    """

    values: Float[Tensor, " n_active"]
    indices: Int[Tensor, " n_active"]
    offsets: Int[Tensor, " n_plus_1"]
    d_sae: int

    @classmethod
    def from_dense(cls, z: Float[Tensor, "n d_sae"]) -> "Codes":
        """Codes of dense latents; entries that are zero are dropped."""
        rows, indices = z.nonzero(as_tuple=True)
        return cls(z[rows, indices], indices.int(), _offsets(rows.bincount(minlength=len(z))), z.shape[1])

    @classmethod
    def concatenate(cls, parts: Iterable["Codes"]) -> "Codes":
        """One above the other.

        Raises:
            ValueError: no part, or parts with unlike numbers of latents.
        """
        parts = list(parts)
        sizes = {part.d_sae for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"codes to concatenate need one number of latents, found {sorted(sizes) or 'no codes'}")
        lengths = torch.cat([part.active_per_row for part in parts])
        values, indices = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "indices"))
        return cls(values, indices, _offsets(lengths), sizes.pop())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice) -> "Codes":
        """A run of rows, as a view."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"codes are sliced in steps of 1, found {step}")
        stop = max(start, stop)
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - first
        return Codes(self.values[first:last], self.indices[first:last], offsets, self.d_sae)

    @property
    def active_per_row(self) -> Int[Tensor, " n"]:
        """Number of active latents of each row (its L0)."""
        return self.offsets.diff()

    @property
    def rows(self) -> Int[Tensor, " n_active"]:
        """The row of each entry."""
        numbers = torch.arange(len(self), device=self.offsets.device)
        return numbers.repeat_interleave(self.active_per_row)

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """Number of rows on which each latent is active."""
        return self.indices.bincount(minlength=self.d_sae)

    def dense(self) -> Float[Tensor, "n d_sae"]:
        """Dense latents."""
        z = self.values.new_zeros(len(self), self.d_sae)
        z[self.rows, self.indices.long()] = self.values
        return z

    def to(self, device: torch.device | str) -> "Codes":
        """The same codes on another device."""
        return Codes(self.values.to(device), self.indices.to(device), self.offsets.to(device), self.d_sae)

    def csr(self) -> "csr_array":
        """The same as a SciPy matrix [n, d_sae] in main memory."""
        # Most jobs that read codes need no SciPy, half a second of each start.
        from scipy.sparse import csr_array

        parts = tuple(part.cpu().numpy() for part in (self.values, self.indices, self.offsets))
        return csr_array(parts, shape=(len(self), self.d_sae))


def batches_of(x: Tensor | Iterable[Tensor], batch_size: int) -> Iterable[Tensor]:
    """Row blocks of a tensor [n, d] or of every tensor in a stream, each of at most `batch_size` rows."""
    parts = (x,) if isinstance(x, Tensor) else x
    return chain.from_iterable(part.split(batch_size) for part in parts)


def _offsets(lengths: Int[Tensor, " n"]) -> Int[Tensor, " n_plus_1"]:
    """Where each row starts, given the entries per row."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
