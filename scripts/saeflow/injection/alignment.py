"""Maps from one network's activation space to another's, fitted on images that both see."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

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


@dataclass(frozen=True, eq=False)
class Sample:
    """What a network makes of sets of images; what every map from it or to it needs of it is computed once.

    Arguments:
        parts: gives the values [m, _, d] of each set, whenever they are wanted.
        penalty: of maps from here, in units of the mean variance.
    """

    parts: Callable[[], Iterable[Tensor]]
    penalty: float = RIDGE

    @classmethod
    def of(cls, values: Float[Tensor, "m n d"], penalty: float = RIDGE) -> Self:
        """Values that are at hand."""
        return cls(lambda: (values,), penalty)

    def values(self) -> Float[Tensor, "m n d"]:
        """All of them, one set below the other."""
        return torch.cat(list(self.parts()), 1)

    @cached_property
    def n(self) -> int:
        """Number of images."""
        return sum(part.shape[1] for part in self.parts())

    @cached_property
    def mean(self) -> Float[Tensor, "m d"]:
        """Over all images."""
        return torch.stack([part.sum(1) for part in self.parts()]).sum(0) / self.n

    @cached_property
    def covariance(self) -> Float[Tensor, "m d d"]:
        """In float64, of products in float32."""
        centered = (part - self.mean[:, None] for part in self.parts())
        return torch.stack([(part.mT @ part).double() for part in centered]).sum(0) / self.n

    @cached_property
    def ridge(self) -> Float[Tensor, "m 1"]:
        """lambda: the penalty in units of the values."""
        return self.penalty * self.covariance.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)

    @cached_property
    def factor(self) -> Float[Tensor, "m d d"]:
        """L with L L' = C + lambda I."""
        penalised = self.covariance.clone()
        penalised.diagonal(dim1=1, dim2=2).add_(self.ridge)
        return torch.linalg.cholesky(penalised)


def fitted(x: Sample, y: Sample) -> tuple[Affine, Float[Tensor, "m q q"]]:
    """W = (C_xx + lambda I)^-1 C_xy, lambda = penalty tr(C_xx)/p;  b = mean y - mean x W;  and cov(y - x W - b).

    Hoerl & Kennard 1970, eq. 2.1, on centred variables; as a map between networks: Lenc & Vedaldi 2015, eq. 4. The
    covariance of what the map leaves out is C_yy - C_yx W - lambda W' W: no second pass over the values.

    Arguments:
        x, y: of the same images.
    """
    parts = zip(x.parts(), y.parts(), strict=True)
    products = [(of_x.mT @ (of_y - y.mean[:, None])).double() for of_x, of_y in parts]
    c_xy = torch.stack(products).sum(0) / x.n
    weight = torch.cholesky_solve(c_xy, x.factor)
    left_out = y.covariance - (c_xy + x.ridge[..., None] * weight).mT @ weight
    weight = weight.to(x.mean)
    return Affine(weight, y.mean - (x.mean[:, None] @ weight)[:, 0]), ((left_out + left_out.mT) / 2).to(weight)


def ridge(x: Float[Tensor, "m n p"], y: Float[Tensor, "m n q"], penalty: float = RIDGE) -> Affine:
    """The map of `fitted` between values that are at hand."""
    return fitted(Sample.of(x, penalty), Sample.of(y))[0]


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
