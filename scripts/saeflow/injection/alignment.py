"""Maps from one network's activation space to another's, fitted on images that both see."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-2
"""Penalty in units of the inputs' mean variance; from 1e-3 to 1e-1 a concept's transfer on MNIST moves by
less than a point, its specificity by 1.5."""

Map = Callable[[Tensor], Tensor]
"""From activations [m, n, p] of one network to [m, n, q] of another."""


class Affine(NamedTuple):
    """y = x W + b, for each member.

    Arguments:
        weight: [m, p, q].
        bias: [m, q].
    """

    weight: Float[Tensor, "m p q"]
    bias: Float[Tensor, "m q"]

    def __call__(self, x: Float[Tensor, "m n p"]) -> Float[Tensor, "m n q"]:
        return torch.baddbmm(self.bias[:, None], x, self.weight)


def ridge(x: Float[Tensor, "m n p"], y: Float[Tensor, "m n q"], penalty: float = RIDGE) -> Affine:
    """W = (C_xx + penalty tr(C_xx)/p I)^-1 C_xy;  b = mean y - mean x W.

    Hoerl & Kennard 1970, eq. 2.1, on centred variables; as a map between networks: Lenc & Vedaldi 2015, eq. 4.
    """
    mean_x, mean_y = x.mean(1), y.mean(1)
    centered = x - mean_x[:, None]
    c_xx = (centered.mT @ centered / x.shape[1]).double()
    c_xy = (centered.mT @ (y - mean_y[:, None]) / x.shape[1]).double()
    c_xx.diagonal(dim1=1, dim2=2).add_(penalty * c_xx.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    weight = torch.linalg.solve(c_xx, c_xy).to(x)
    return Affine(weight, mean_y - (mean_x[:, None] @ weight)[:, 0])


def procrustes(x: Float[Tensor, "m n p"], y: Float[Tensor, "m n q"]) -> Affine:
    """W = s U V' with C_xy = U S V', s = tr(S) / tr(C_xx);  b = mean y - mean x W.

    The rotation and scale that bring x nearest to y (Schoenemann 1966; scale: Schoenemann & Carroll 1970, eq. 14). With
    unequal widths U V' is a partial isometry.
    """
    mean_x, mean_y = x.mean(1), y.mean(1)
    centered = x - mean_x[:, None]
    c_xy = centered.mT @ (y - mean_y[:, None])
    u, s, v = torch.linalg.svd(c_xy.double(), full_matrices=False)
    scale = s.sum(1) / centered.double().square().sum((1, 2))
    weight = (scale[:, None, None] * (u @ v)).to(x)
    return Affine(weight, mean_y - (mean_x[:, None] @ weight)[:, 0])


def residual_covariance(to: Map, x: Float[Tensor, "m n p"], y: Float[Tensor, "m n q"]) -> Float[Tensor, "m q q"]:
    """Second moment of y - to(x): what of y the map does not know."""
    error = y - to(x)
    return error.mT @ error / y.shape[1]
