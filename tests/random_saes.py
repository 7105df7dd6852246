"""Untrained SAEs of every architecture, for tests."""

import torch
from torch.nn.functional import normalize

from saeflow.sae.architectures import ARCHITECTURES, SparseAutoencoder


def random_sae(
    architecture: str, d_in: int = 6, d_sae: int = 20, seed: int = 0, dtype: torch.dtype = torch.float64
) -> SparseAutoencoder:
    """Normal weights, decoder rows of length 1; a latent is active on about a quarter to a half of normal inputs."""
    generator = torch.Generator().manual_seed(seed)
    cls = ARCHITECTURES[architecture]
    sizes = {"d_in": d_in, "d_sae": d_sae}
    tensors = {
        name: torch.randn(*(sizes[axis] for axis in axes), generator=generator, dtype=torch.float64).to(dtype)
        for name, axes in cls.shapes.items()
    }
    tensors["W_dec"] = normalize(tensors["W_dec"], dim=1)
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    return cls(**tensors, **({"k": d_sae // 4} if "k" in cls.settings else {}))
