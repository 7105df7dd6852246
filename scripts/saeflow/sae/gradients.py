"""What one step leaves behind for the optimizer: gradients, of large matrices only as much at a time as is wanted."""

from collections.abc import Iterable
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


def mean_of(parts: Iterable[Gradients]) -> Gradients:
    """Gradients of a batch from those of its equal parts; a part may be gone when the next one is made.

    Raises:
        ValueError: no part.
    """
    matrices: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    errors, fired, terms, l0, threshold = [], [], [], [], []
    for part in parts:
        for name, gradient in part.matrices.items():
            whole = gradient.block(0, gradient.n_latents)
            matrices[name] = matrices[name].add_(whole) if name in matrices else whole.clone()
        for name, gradient in part.vectors.items():
            vectors[name] = vectors[name].add_(gradient) if name in vectors else gradient.clone()
        errors.append(part.error.clone())
        fired.append(part.fired)
        terms.append(part.terms)
        l0.append(part.l0)
        threshold.append(part.threshold)
    if not (n := len(errors)):
        raise ValueError("parts: none to take the mean of")
    return Gradients(
        {name: RowGradient(total.div_(n)) for name, total in matrices.items()},
        {name: total.div_(n) for name, total in vectors.items()},
        torch.cat(errors, dim=1),
        torch.stack(fired).any(0),
        {name: sum(part[name] for part in terms) / n for name in terms[0]},
        None if l0[0] is None else sum(l0) / n,
        None if threshold[0] is None else sum(threshold) / n,
    )
