"""What one step leaves behind for the optimizer: gradients, of large matrices only as much at a time as is wanted."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.sae.kernels import ByLatent, sum_rows


@dataclass
class RowGradient:
    """Gradient of a matrix [n_latents, d], block of rows by block of rows, so that the whole never exists.

    Arguments:
        table: vectors that are summed, or with `order` None the gradient itself.  Shape [n_rows, d] or [n_latents, d].
        order: active entries by latent, or None.
        values: weight of each entry, in that order.
        latents: ascending latents that get something on top.  Shape [k].
        extra: what they get.  Shape [k, d].
    """

    table: Float[Tensor, "n d"]
    order: ByLatent | None = None
    values: Float[Tensor, " n_entries"] | None = None
    latents: Int[Tensor, " k"] | None = None
    extra: Float[Tensor, "k d"] | None = None

    def block(self, start: int, stop: int) -> Float[Tensor, "stop_minus_start d"]:
        """Rows [start, stop); the caller may overwrite them."""
        rows = (
            self.table[start:stop] if self.order is None else sum_rows(self.order, self.values, self.table, start, stop)
        )
        if self.latents is not None:
            if rows.shape[0] == self.n_latents:
                return rows.index_add_(0, self.latents, self.extra)
            first, last = torch.searchsorted(self.latents, self.latents.new_tensor([start, stop])).tolist()
            rows.index_add_(0, self.latents[first:last] - start, self.extra[first:last])
        return rows

    @property
    def n_latents(self) -> int:
        return self.table.shape[0] if self.order is None else self.order.offsets.numel() - 1


@dataclass
class Gradients:
    """Gradients of one step, of m members stacked, and what the step saw.

    Arguments:
        matrices: gradient of each matrix, its member axis flattened into its rows.
        vectors: gradient of each vector.  Shapes [m, d_sae] or [m, d_in].
        error: x_hat - x.  Shape [m, b, d_in].
        fired: latents that were active on any row.  Shape [m, d_sae].
        terms: parts of the loss by name, each [m]; without `reconstruction` unless the step was measured.
        l0: mean active latents per row, if the step was measured.  Shape [m].
        threshold: least active preactivation (BatchTopK).  Shape [m].
    """

    matrices: dict[str, RowGradient]
    vectors: dict[str, Tensor]
    error: Float[Tensor, "m b d_in"]
    fired: Bool[Tensor, "m d_sae"]
    terms: dict[str, Float[Tensor, " m"]] = field(default_factory=dict)
    l0: Float[Tensor, " m"] | None = None
    threshold: Float[Tensor, " m"] | None = None
