"""Where training starts: units of the activations, and first weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.config.saes import SparseAutoencoder, Training
from saeflow.reproduce import child_seed
from saeflow.sae.objectives import objective_of


class NotFiniteError(ValueError):
    """Activations that are NaN or infinite.

    Arguments:
        row: the first activation vector of them.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"activation vector {row} holds a value that is not finite")
        self.row = row


@dataclass(frozen=True)
class Normalization:
    """x' = (x - mean) * scale: what an SAE is trained on.

    Arguments:
        mean: in the store's units.  Shape [d_in].
        scale: 1 / the store's unit.
        start: b_dec at the start, in units of x'.  Shape [d_in].
    """

    mean: Float[Tensor, " d_in"]
    scale: float
    start: Float[Tensor, " d_in"]

    @classmethod
    def of(cls, batches: Iterable[Tensor], normalize: bool) -> "Normalization":
        """From one pass over all activations, in float64.

        Arguments:
            normalize: mean 0 and mean squared norm d_in; otherwise x' = x, and b_dec starts at the mean.
        Raises:
            ValueError: no activations, or all of them equal.
            NotFiniteError: a value that is NaN or infinite.
        """
        n, shift, total, squares = 0, None, None, 0.0
        for batch in batches:
            x = batch.double()
            if not bool(x.sum().isfinite()):
                raise NotFiniteError(n + int((~x.isfinite().all(1)).nonzero()[0]))
            if shift is None:
                shift, total = x.mean(0), torch.zeros_like(x[0])
            # About a point near the mean, so that a large mean does not swallow the spread.
            x = x - shift
            n += len(x)
            total += x.sum(0)
            squares += float(x.square().sum())
        if shift is None:
            raise ValueError("normalize: the store has no activations")
        offset = total / n
        mean = (shift + offset).float()
        spread = squares / n - float(offset.square().sum())
        if not normalize:
            return cls(torch.zeros_like(mean), 1.0, mean)
        if not spread > 0:
            raise ValueError(f"normalize: all {n} activation vectors are equal; there is nothing to train on")
        return cls(mean, (len(mean) / spread) ** 0.5, torch.zeros_like(mean))

    def to(self, device: torch.device | str) -> "Normalization":
        """The same on another device."""
        return Normalization(self.mean.to(device), self.scale, self.start.to(device))

    def __call__(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """x'."""
        return (x - self.mean).mul_(self.scale)

    def undo(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """x of x'."""
        return x / self.scale + self.mean


def initial_parameters(
    spec: SparseAutoencoder,
    store: Any,
    normalization: Normalization,
    training: Training,
    seed: int,
) -> dict[str, Tensor]:
    """First weights of one member: W_enc = W_dec^T, rows of W_dec of length 1, b_dec the mean activation.

    Arguments:
        store: an activation store; its rows become decoder rows with `training.init` "data".
        seed: of the member; what is drawn depends on nothing else.
    Returns:
        W_enc_T and W_dec [d_sae, d_in], b_dec [d_in], vectors [d_sae].
    """
    generator = torch.Generator().manual_seed(child_seed(seed, "initialization"))
    n_rows, d_in = store.shape
    if training.init == "data":
        repeats = -(-spec.d_sae // n_rows)
        chosen = torch.cat([torch.randperm(n_rows, generator=generator) for _ in range(repeats)])[: spec.d_sae]
        rows = normalization(store.rows(chosen).float()) - normalization.start
        # Rows that are repeated, or that lie at the mean, need a direction of their own.
        noise = torch.randn(spec.d_sae, d_in, generator=generator)
        rows += noise * (rows.norm(dim=1).mean() * (0.1 if repeats > 1 else 1e-3) / d_in**0.5)
    else:
        rows = torch.randn(spec.d_sae, d_in, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    vectors = objective_of(spec).initial_vectors(spec)
    return {
        "W_enc_T": rows,
        "W_dec": rows.clone(),
        "b_dec": normalization.start.clone(),
        **{name: torch.full((spec.d_sae,), value) for name, value in vectors.items()},
    }
