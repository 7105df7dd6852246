"""Classes as Gaussians in a target's activation space, and the heads that compare them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.injection.networks import Assembled

HANDICAP = 14.0
"""Nats by which a look-alike is favoured over the concept, because rows that were carried over are not exact. With 0,
7, 14 and 21 nats `neural_aligner` reached a transfer of 81, 82, 80 and 75 % at a specificity of 18, 12, 8 and 6 %, on
training images of MNIST that no network had seen, mean of 25 pairs and 2 seeds."""
UNCERTAINTY = 0.3
"""Weight of the target's own uncertainty, -max_j l_j, against one nat of evidence for the concept. With 0.1, 0.3 and 1
the same came to 78, 80 and 83 % at 7, 8 and 13 %."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) of each member.

    Arguments:
        mean: [m, d].
        covariance: [m, d, d].
    """

    mean: Float[Tensor, "m d"]
    covariance: Float[Tensor, "m d d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "m n d"], noise: Float[Tensor, "m d d"] | None = None) -> Self:
        """Mean and shrunk covariance of rows; `noise` is what a map left out of them, and is added."""
        mean = rows.mean(1)
        centered = rows - mean[:, None]
        covariance = shrunk(centered.mT @ centered / rows.shape[1], rows.shape[1])
        return cls(mean, covariance if noise is None else covariance + noise)

    @cached_property
    def density(self) -> "LogDensity":
        """One module for all that compare the class."""
        lower = torch.linalg.cholesky(self.covariance.double())
        log_volume = lower.diagonal(dim1=1, dim2=2).log().sum(1).to(self.mean)
        # In float64 a covariance is never found indefinite for rounding; float32 is enough for what follows.
        lower = lower.to(self.mean)
        identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        whitening = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False).mT.contiguous()
        return LogDensity((self.mean[:, None] @ whitening)[:, 0], whitening, log_volume)


def shrunk(covariance: Float[Tensor, "m d d"], n: int) -> Float[Tensor, "m d d"]:
    """(1 - rho) S + rho tr(S)/d I with the rho of least expected error (Chen et al. 2010, OAS, eq. 23;
    its terms in 2/d are left out, as in scikit-learn).

    Arguments:
        covariance: S, of n rows.
    """
    d = covariance.shape[-1]
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    squares = covariance.square().sum((1, 2))
    part = squares + trace.square()
    whole = (n + 1) * (squares - trace.square() / d)
    rho = torch.where(whole > part, part / whole, torch.ones_like(part))
    shrunken = (1 - rho)[:, None, None] * covariance
    shrunken.diagonal(dim1=1, dim2=2).add_((rho * trace / d)[:, None])
    return shrunken


class LogDensity(nn.Module):
    """log N(h; mean, C) + constant = -|h P - mean P|^2 / 2 - log det(C) / 2.

    Arguments:
        mean: mean P.  Shape [m, d].
        whitening: P with P P' = C^-1.  Shape [m, d, d].
        log_volume: log det(C) / 2.  Shape [m].
    """

    def __init__(
        self, mean: Float[Tensor, "m d"], whitening: Float[Tensor, "m d d"], log_volume: Float[Tensor, " m"]
    ) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean, requires_grad=False)
        self.whitening = nn.Parameter(whitening, requires_grad=False)
        self.log_volume = nn.Parameter(log_volume, requires_grad=False)

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n"]:
        whitened = torch.baddbmm(-self.mean[:, None], h, self.whitening)
        return -whitened.square().sum(-1) / 2 - self.log_volume[:, None]


class OwnClasses(nn.Module):
    """max_j log N(h; mean_j, C_j) + constant: how well the best of a target's own classes explains h.

    Arguments:
        gaussians: one for each class.
    """

    def __init__(self, gaussians: Sequence[Gaussian]) -> None:
        super().__init__()
        self.gaussians = tuple(gaussians)
        self.densities = nn.ModuleList(gaussian.density for gaussian in gaussians)

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n"]:
        return torch.stack([density(h) for density in self.densities], -1).amax(-1)


class LikelihoodRatio(Assembled):
    """s = (log p(h | concept) - log(max_j p(h | own class j) + sum_l e^handicap p(h | look-alike l))) / UNCERTAINTY.

    Quadratic discriminant analysis (Hastie et al. 2009, eq. 4.12). The best own class alone counts, as in the
    target's own argmax; the scale leans the answer on the target's own uncertainty.

    Arguments:
        concept: of the class that is scored.
        own: the target's own classes.
        lookalikes: of other classes that the target does not know.
        handicap: nats in favour of the look-alikes.
    """

    def __init__(
        self,
        concept: Gaussian,
        own: OwnClasses,
        lookalikes: Sequence[Gaussian] = (),
        handicap: float = HANDICAP,
    ) -> None:
        super().__init__(own, concept.density, *(lookalike.density for lookalike in lookalikes))
        self.handicap = handicap

    def combine(self, best_own: Tensor, concept: Tensor, *lookalikes: Tensor) -> Float[Tensor, "m n"]:
        return _ratio(concept, best_own, lookalikes, self.handicap)


class LinearRatio(nn.Module):
    """The likelihood ratio with C_j = C, the average covariance of all classes: linear in h, for log p(h | j) is
    h' C^-1 mean_j - mean_j' C^-1 mean_j / 2 + a function of h that all classes share.

    Linear discriminant analysis (Hastie et al. 2009, eq. 4.10): one direction for each class.

    Arguments:
        concept, own, lookalikes, handicap: as in `LikelihoodRatio`.
    """

    def __init__(
        self,
        concept: Gaussian,
        own: Sequence[Gaussian],
        lookalikes: Sequence[Gaussian] = (),
        handicap: float = HANDICAP,
    ) -> None:
        super().__init__()
        gaussians = [concept, *lookalikes, *own]
        covariance = torch.stack([gaussian.covariance for gaussian in gaussians]).mean(0)
        means = torch.stack([gaussian.mean for gaussian in gaussians], 2)
        directions = torch.cholesky_solve(means.double(), torch.linalg.cholesky(covariance.double())).to(means)
        self.directions = nn.Parameter(directions, requires_grad=False)
        self.offsets = nn.Parameter(-(means * directions).sum(1) / 2, requires_grad=False)
        self.n_own, self.handicap = len(own), handicap

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n"]:
        densities = torch.baddbmm(self.offsets[:, None], h, self.directions)
        concept, *lookalikes = densities[..., : -self.n_own].unbind(-1)
        return _ratio(concept, densities[..., -self.n_own :].amax(-1), lookalikes, self.handicap)


def _ratio(concept: Tensor, best_own: Tensor, lookalikes: Sequence[Tensor], handicap: float) -> Float[Tensor, "m n"]:
    rivals = best_own
    for lookalike in lookalikes:
        rivals = torch.logaddexp(rivals, lookalike + handicap)
    return (concept - rivals) / UNCERTAINTY
