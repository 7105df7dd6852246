"""How the decoder rows of an SAE lie to one another."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.features.blocks import blocks


@dataclass(frozen=True)
class DecoderGeometry:
    """Nearest decoder rows by cosine, most similar first."""

    neighbours: Int[Tensor, "d_sae n"]
    cosines: Float[Tensor, "d_sae n"]
    norms: Float[Tensor, " d_sae"]
    """Norm of each decoder row."""
    encoder_cosine: Float[Tensor, " d_sae"]
    """Cosine of a latent's encoder column with its decoder row."""


def decoder_geometry(
    decoder: Float[Tensor, "d_sae d_in"], encoder: Float[Tensor, "d_in d_sae"], n_neighbours: int, block: int = 2048
) -> DecoderGeometry:
    """Nearest rows of every row, a block of rows at a time. A zero row has cosine 0 with every other.

    Arguments:
        n_neighbours: kept per row; at most d_sae - 1 are there.
    """
    norms = decoder.norm(dim=1)
    unit = decoder / norms.clamp(min=torch.finfo(decoder.dtype).tiny)[:, None]
    n = min(n_neighbours, len(decoder) - 1)
    neighbours, cosines = [], []
    for rows in blocks(len(decoder), block):
        similarity = unit[rows.start : rows.stop] @ unit.T
        own = torch.arange(rows.start, rows.stop, device=decoder.device)
        similarity[torch.arange(len(rows), device=decoder.device), own] = -torch.inf
        values, indices = similarity.topk(n, dim=1)
        # Equal cosines in the order of the latents.
        order = torch.argsort(indices, dim=1, stable=True)
        order = order.gather(1, torch.argsort(values.gather(1, order), dim=1, descending=True, stable=True))
        neighbours.append(indices.gather(1, order))
        cosines.append(values.gather(1, order).clamp(-1, 1))
    return DecoderGeometry(
        torch.cat(neighbours), torch.cat(cosines), norms, torch.cosine_similarity(encoder.T, decoder, dim=1)
    )
