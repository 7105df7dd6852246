"""Codes of a store as a stream, and dense blocks of latents: what keeps the analysis small in memory."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from saeflow.activations import ActivationStore
from saeflow.sae.architectures import SparseAutoencoder
from saeflow.sae.codes import Codes


def blocks(total: int, size: int) -> Iterator[range]:
    """Neighbouring ranges of at most `size` that cover range(total)."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


def encoded(sae: SparseAutoencoder, store: ActivationStore, batch_rows: int = 8192) -> Iterator[Codes]:
    """Codes of a store's rows in their order, a batch at a time: memory does not grow with the store."""
    for rows in blocks(len(store), batch_rows):
        yield sae.encode_sparse(store.rows(slice(rows.start, rows.stop), sae.device).to(sae.dtype), batch_rows)


def dense(codes: Codes, latents: range) -> Float[Tensor, "rows latents"]:
    """Codes of some neighbouring latents, with their zeros."""
    inside = (codes.indices >= latents.start) & (codes.indices < latents.stop)
    z = codes.values.new_zeros(len(codes), len(latents))
    z[codes.rows[inside], codes.indices[inside].long() - latents.start] = codes.values[inside]
    return z
