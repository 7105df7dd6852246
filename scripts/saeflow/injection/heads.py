"""Heads fitted on a target's values: ridge regression, and a small network that learns another's soft answers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.injection.networks import Head
from saeflow.models.adamw import AdamW, packed

_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 1e-4
_WIDEST = 512
_LARGEST_BATCH = 1 << 18  # values; 2 MiB of cache lose a tenth with twice as many
_CONSTANT = 1e-6  # of the greatest variance: less is rounding, and a hundredth of the floor


def narrowed(
    parts: Iterable[Float[Tensor, "m _ d"]], generator: torch.Generator
) -> tuple[Float[Tensor, "m n k"], Float[Tensor, "d k"] | None]:
    """Values with at most 512 in a row: h itself, or h P with P ~ N(0, 1/d), the same draw for all members.

    Arguments:
        parts: of h, one above the other; each is let go before the next is asked for.
        generator: of P.
    Returns:
        the values, and P, None where they are h itself; see `widened`.
    """
    found, directions = [], None
    for h in parts:
        d = h.shape[-1]
        if d > _WIDEST and directions is None:
            directions = (torch.randn(d, _WIDEST, generator=generator) / math.sqrt(d)).to(h)
        found.append(h if directions is None else h @ directions)
    return torch.cat(found, dim=1), directions


def widened(weight: Float[Tensor, "m k o"], directions: Float[Tensor, "d k"] | None) -> Float[Tensor, "m d o"]:
    """A layer that reads narrowed values, as one that reads the values themselves."""
    return weight if directions is None else directions @ weight


class Ridge:
    """argmin_{w, b} sum_i a_i (w h_i + b - y_i)^2 / sum_i a_i + lambda |w|^2, lambda = strength x mean variance of h.

    Sums of products in float32 over centred values, solved in float64. One factorisation serves many y.

    Arguments:
        h: values; d of them per row.
        strength: of the penalty, relative to the values' mean variance.
        weights: of the rows; 1 if not given.
    """

    def __init__(
        self, h: Float[Tensor, "m n d"], *, strength: float, weights: Float[Tensor, "m n"] | None = None
    ) -> None:
        share = h.new_ones(h.shape[:2]) if weights is None else weights
        self._share = share / share.sum(1, keepdim=True).clamp(min=1e-12)
        self._mean = (self._share[..., None] * h).sum(1, keepdim=True)
        centred = h - self._mean
        self._scaled = centred * self._share[..., None]
        covariance = (self._scaled.mT @ centred).double()
        penalty = strength * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)
        covariance.diagonal(dim1=-2, dim2=-1).add_(penalty[:, None])
        self._factor = torch.linalg.cholesky(covariance)

    def solve(self, y: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m d 1"], Float[Tensor, "m 1"]]:
        """Weight and bias of a linear layer that predicts y."""
        mean = (self._share * y).sum(1, keepdim=True)
        # The row in front: a product with a column behind costs ten times as much.
        products = ((y - mean)[:, None] @ self._scaled).mT
        weight = torch.cholesky_solve(products.double(), self._factor).to(y)
        return weight, mean - (self._mean @ weight)[..., 0]


def ridge(
    h: Float[Tensor, "m n d"],
    y: Float[Tensor, "m n"],
    *,
    strength: float,
    weights: Float[Tensor, "m n"] | None = None,
) -> tuple[Float[Tensor, "m d 1"], Float[Tensor, "m 1"]]:
    """Weight and bias that predict y; see `Ridge`."""
    return Ridge(h, strength=strength, weights=weights).solve(y)


def random_features(
    h: Float[Tensor, "m n d"], n_features: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m d k"], Float[Tensor, "m k"]]:
    """relu(u (h - mean) / std + c) with u ~ N(0, 1/d), c ~ U(-1, 1): weight and bias of that layer (Rahimi and Recht
    2008, with rectified units), the same draw for all members."""
    d = h.shape[-1]
    directions = torch.randn(d, n_features, generator=generator).to(h) / math.sqrt(d)
    offsets = (2 * torch.rand(n_features, generator=generator) - 1).to(h)
    weight = directions / h.std(1).clamp(min=1e-6)[..., None]
    bias = offsets - (h.mean(1, keepdim=True) @ weight)[:, 0]
    return weight, bias


def whitening(h: Float[Tensor, "m n d"], floor: float = 1e-4) -> tuple[Float[Tensor, "m d k"], Float[Tensor, "m k"]]:
    """Weight W and bias b with h W + b of mean 0 and covariance 1, eigenvalues floored at `floor` times the largest.

    In a trained network's last layers most variance lies in a few directions, those of its own classes; what tells
    other classes apart is in the rest. Directions in which no member varies are left out: a first layer of 512 units on
    64 pixels has 64. The others come in the order of their variance, the greatest last.
    """
    mean = h.mean(1, keepdim=True)
    centred = h - mean
    values, vectors = torch.linalg.eigh((centred.mT @ centred).double() / h.shape[1])
    largest = values[:, -1:].clamp(min=1e-12)
    k = max(1, int((values > _CONSTANT * largest).sum(1).max()))
    weight = (vectors[..., -k:] / (values[:, -k:] + floor * largest).sqrt()[:, None]).to(h)
    return weight, -(mean @ weight)[:, 0]


@dataclass(frozen=True)
class Whitened:
    """h W + b: values narrowed and of mean 0 and covariance 1, with the layer that makes them of others.

    Arguments:
        values: those of the rows that W and b are fitted on.
        weight, bias: W and b.
        width: how many directions a row of h had once narrowed; values vary along k of them.
    """

    values: Float[Tensor, "m n k"]
    weight: Float[Tensor, "m d k"]
    bias: Float[Tensor, "m k"]
    width: int

    @classmethod
    def of(cls, parts: Iterable[Float[Tensor, "m _ d"]], generator: torch.Generator) -> Self:
        """Fitted on all rows of h, given in parts, which are narrowed."""
        h, directions = narrowed(parts, generator)
        weight, bias = whitening(h)
        return cls(torch.baddbmm(bias[:, None], h, weight), widened(weight, directions), bias, h.shape[-1])


def distil(
    white: Whitened,
    p: Float[Tensor, "s m n"],
    *,
    weights: Float[Tensor, "s m n"],
    hidden: int,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
) -> list[Head]:
    """argmin over a network s(h) = w relu(W h + b) + c of the weighted mean of -p log sigma(s) - (1 - p) log sigma(-s).

    Rows are drawn as often as their weights say. The network reads whitened values; the whitening is folded into its
    first layer. AdamW, step size falling by a cosine. Heads of several sources are trained as one stack, as far as its
    rows stay in a CPU's cache.

    Arguments:
        white: the rows' values.
        p: the probability that each source gives.
        weights: of the rows; not all 0.
        hidden: units.
        steps: number of steps.
        batch_size: rows per step.
        generator: of first weights and of which quantile of the weights each row is, the same draw for all heads; on
            the CPU.
    Returns:
        of each source, a head from h to the log-odds s.
    """
    h = white.values
    n_members, _, k = h.shape
    # Drawn for all directions, so that how many vary in other members does not matter to one.
    start = (
        math.sqrt(2 / white.width) * torch.randn(white.width, hidden, generator=generator)[-k:],
        torch.zeros(1, hidden),
        math.sqrt(1 / hidden) * torch.randn(hidden, 1, generator=generator).mT,
        torch.zeros(1, 1),
    )
    quantiles = 1 - torch.rand(steps, batch_size, generator=generator, dtype=torch.float64).to(h.device)
    at_once = max(1, _LARGEST_BATCH // (n_members * batch_size * k)) if h.device.type == "cpu" else len(p)
    parts = zip(p.split(at_once), weights.split(at_once), strict=True)
    return [head for part in parts for head in _descended(white, *part, start, quantiles)]


def _descended(
    white: Whitened,
    p: Float[Tensor, "s m n"],
    weights: Float[Tensor, "s m n"],
    start: Sequence[Tensor],
    quantiles: Float[Tensor, "steps batch"],
) -> list[Head]:
    """Heads of `distil`, those of several sources one after another in one stack."""
    (n_members, n, k), (steps, batch_size), m = white.values.shape, quantiles.shape, p.shape[:2].numel()
    values = white.values.reshape(n_members * n, k)
    shapes = [(m, *draw.shape) for draw in start]
    whole, parameters = packed(shapes, values)
    first, first_bias, last, last_bias = parameters
    gradient, (of_first, of_first_bias, of_last, of_last_bias) = packed(shapes, values)
    for parameter, draw in zip(parameters, start, strict=True):
        parameter.copy_(draw)
    optimizer = AdamW([whole], _WEIGHT_DECAY)
    shares = weights.reshape(m, n).double().cumsum(1)
    # The smallest row that the quantile does not exceed; rows of weight 0 are passed over. In order, it is found fast.
    ascending, order = quantiles.flatten().sort()
    rows = torch.searchsorted(shares, ascending * shares[:, -1:]).clamp(max=n - 1)[:, order.argsort()]
    answers = p.reshape(m, n).gather(1, rows) / batch_size
    rows += n * (torch.arange(m, device=rows.device)[:, None] % n_members)
    by_step = (some.view(m, steps, batch_size).transpose(0, 1) for some in (rows, answers))
    for step, (drawn, answer) in enumerate(zip(*by_step, strict=True)):
        # By hand: autograd's kernels for products with one row cost as much as those with all of `first`.
        x = values.index_select(0, drawn.flatten()).view(m, batch_size, k)
        z = torch.baddbmm(first_bias, x, first).relu_()
        s = torch.baddbmm(last_bias, last, z.mT)
        d_s = s.sigmoid_().div_(batch_size).sub_(answer[:, None])
        torch.bmm(d_s, z, out=of_last)
        torch.sum(d_s, 2, keepdim=True, out=of_last_bias)
        d_z = (d_s.mT * last).mul_(z.sign_())
        torch.bmm(x.mT, d_z, out=of_first)
        torch.sum(d_z, 1, keepdim=True, out=of_first_bias)
        optimizer.step((gradient,), _LEARNING_RATE / 2 * (1 + math.cos(math.pi * step / steps)))
    return [
        Head((white.weight @ w, torch.baddbmm(b, white.bias[:, None], w)[:, 0]), (last_w.mT, last_b[:, 0]))
        for w, b, last_w, last_b in zip(*(parameter.split(n_members) for parameter in parameters), strict=True)
    ]


def logistic(
    h: Float[Tensor, "m n d"], y: Float[Tensor, "m n"], *, strength: float = 1e-4, steps: int = 100
) -> tuple[Float[Tensor, "m d 1"], Float[Tensor, "m 1"]]:
    """argmin_{w, b} of the mean of -y log sigma(s) - (1 - y) log sigma(-s) + strength / 2 |w|^2, s = w h' + b.

    h': values divided by their root mean variance. Newton's method with the curvature bounded by a quarter of h' h'^T
    (Boehning and Lindsay 1988): one matrix is factored, no step is too long.

    Arguments:
        h: values.
        y: 0 or 1.
        strength: of the penalty.
        steps: iterations.
    Returns:
        w and b, in units of h.
    """
    mean = h.mean(1, keepdim=True)
    scale = h.var(1).mean(-1).clamp(min=1e-12).rsqrt()[:, None, None]
    x = nn.functional.pad((h - mean) * scale, (0, 1), value=1.0)
    penalty = torch.full_like(x[0, 0], strength)
    penalty[-1] = 0
    n = x.shape[1]
    bound = torch.linalg.cholesky((x.mT @ x / (4 * n)).double() + torch.diag(penalty.double() + 1e-9))
    w = x.new_zeros(len(x), x.shape[-1], 1)
    for _ in range(steps):
        # The row in front, as in `Ridge.solve`.
        residual = (w.mT @ x.mT).sigmoid() - y[:, None]
        gradient = (residual @ x).mT / n + penalty[:, None] * w
        w = w - torch.cholesky_solve(gradient.double(), bound).to(w)
    weight = w[:, :-1] * scale
    return weight, w[:, -1] - (mean @ weight)[:, 0]
