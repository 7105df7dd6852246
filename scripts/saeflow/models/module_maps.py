"""What a module does to single vectors, as measured: a linear map, or a normalisation with a gain per coordinate."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROUNDED = 0.02
"""Most that numbers of half precision deviate, relative to their size."""
_EXACT = 1e-3  # the same in float32
_PROBES = 8
_LENGTH = 8.0  # of a probe's coordinates: what a normalisation adds to a variance does not count beside it


@dataclass(frozen=True)
class LinearMap:
    """x to `matrix` x, and a bias.

    Arguments:
        matrix: Shape [e, d].
    """

    matrix: Float[Tensor, "e d"]

    def pull_back(self, rows: Float[Tensor, "n e"]) -> Float[Tensor, "n d"]:
        """Rows that read x as the given ones read what comes of it."""
        return rows @ self.matrix.to(rows)


@dataclass(frozen=True)
class Normalisation:
    """x to `gain` x over its Euclidean length, and a bias; the mean of x is taken out first if it `centers`.

    Arguments:
        gain: for a root mean square of 1.  Shape [d].
    """

    gain: Float[Tensor, " d"]
    centers: bool

    def pull_back(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows that read x as the given ones read what comes of it, but for the division. In place."""
        rows *= self.gain.to(rows)
        if self.centers:
            rows -= rows.mean(1, keepdim=True)
        return rows


@torch.no_grad()
def measure(
    module: nn.Module, taken: Float[Tensor, "*n d"], given: Float[Tensor, "*m e"]
) -> LinearMap | Normalisation | None:
    """A module's map, from what a copy of it in float32 makes of probes.

    Arguments:
        module: whose forward takes one tensor.
        taken, given: what it took and gave when the model ran, against which the map is checked.
    Returns:
        None for every other map.
    """
    try:
        own = copy.deepcopy(module).float()
        lead = (1,) * (taken.ndim - 2)
        return _measured(
            lambda rows: own(rows.reshape(*lead, *rows.shape)).flatten(0, -2),
            *(value.flatten(0, -2).float() for value in (taken, given)),
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None  # it cannot run on other vectors than those that the model gives it


def _measured(
    give: Callable[[Tensor], Tensor], x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]
) -> LinearMap | Normalisation | None:
    if deviation(give(x), y) > ROUNDED:  # it depends on more than x
        return None
    signs = _LENGTH * random_signs((_PROBES, x.shape[1])).to(x)
    zero, others = give(torch.zeros_like(x[:1])), signs.roll(1, 0)
    if deviation(give(signs + others) - zero, give(signs) + give(others) - 2 * zero) <= _EXACT:
        matrix = (give(torch.eye(x.shape[1]).to(x)) - zero).T
        return LinearMap(matrix) if deviation(x @ matrix.T + zero, give(x)) <= _EXACT else None
    centers = deviation(give(signs + _LENGTH), give(signs)) <= _EXACT
    odd, even = (give(signs) - give(-signs)) / 2, (give(signs) + give(-signs)) / 2
    gains = odd / _unit(signs, centers)
    gain, bias = gains.mean(0), even.mean(0)
    is_norm = (
        deviation(gains, gain.expand_as(gains)) <= _EXACT
        and deviation(give(2 * signs), give(signs)) <= _EXACT
        and deviation(gain * _unit(x, centers) + bias, give(_LENGTH * _unit(x, centers))) <= _EXACT
    )
    return Normalisation(gain, centers) if is_norm else None


def random_signs(shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """1 and -1, the same ones each time."""
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1


def deviation(a: Tensor, b: Tensor) -> float:
    """Of a from b, over the size of b; infinite where shapes differ or a number is none."""
    found = float((a - b).norm() / b.norm()) if a.shape == b.shape else float("nan")
    return float("inf") if found != found else found


def _unit(x: Tensor, centers: bool) -> Tensor:
    """Vectors of root mean square 1, their means taken out first if need be."""
    x = x - x.mean(1, keepdim=True) if centers else x
    return x / x.square().mean(1, keepdim=True).sqrt()
