"""Simple measurable properties of images, in words: the vocabulary of the hypotheses beside the labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_REGIONS = (
    ("upper left", "top", "upper right"),
    ("left", "center", "right"),
    ("lower left", "bottom", "lower right"),
)


@dataclass(frozen=True)
class Descriptors:
    """One value per row and property, with the words for a high and for a low one."""

    values: Float[Tensor, "rows properties"]
    high: tuple[str, ...]
    """Completes "fires where ...", for values above a threshold."""
    low: tuple[str, ...]


def image_descriptors(images: Float[Tensor, "n 1 h w"]) -> Descriptors:
    """Brightness of nine regions and of the whole image; slant, width and height of the bright shape.

    The shape's properties are second moments of the intensity around its center of mass: slant -cov(x, y) / var(y) with
    y pointing down (positive leans right, like a slash), width and height the standard deviations of x and y in pixels.
    """
    x = images[:, 0].double()
    h, w = x.shape[1:]
    values, high, low = [], [], []
    for r, names in enumerate(_REGIONS):
        for c, name in enumerate(names):
            region = x[:, round(r * h / 3) : round((r + 1) * h / 3), round(c * w / 3) : round((c + 1) * w / 3)]
            values.append(region.mean((1, 2)))
            high.append(f"the {name} is bright")
            low.append(f"the {name} is dark")
    values.append(x.mean((1, 2)))
    mass = x.sum((1, 2)).clamp(min=torch.finfo(x.dtype).tiny)
    rows = torch.arange(h, device=x.device, dtype=x.dtype)
    columns = torch.arange(w, device=x.device, dtype=x.dtype)
    over_rows, over_columns = x.sum(2), x.sum(1)
    dy = rows - (over_rows @ rows / mass)[:, None]
    dx = columns - (over_columns @ columns / mass)[:, None]
    var_y, var_x = (over_rows * dy**2).sum(1) / mass, (over_columns * dx**2).sum(1) / mass
    covariance = torch.einsum("nhw,nh,nw->n", x, dy, dx) / mass
    values += [-covariance / var_y.clamp(min=1e-9), var_x.sqrt(), var_y.sqrt()]
    high += ["the image is bright", "the shape leans right", "the shape is wide", "the shape is tall"]
    low += ["the image is dark", "the shape leans left", "the shape is narrow", "the shape is low"]
    # Sums of unlike length round unlike; without the rounding equal images could fall on two sides of a threshold.
    return Descriptors(torch.stack(values, 1).round(decimals=9).float(), tuple(high), tuple(low))


def levels(
    train: Float[Tensor, "rows properties"], *others: Float[Tensor, "_ properties"], n_levels: int = 10
) -> list[Int[Tensor, "_ properties"]]:
    """Quantile level 0 .. n_levels - 1 of each value, on the training rows' edges, for them and for other rows."""
    shares = torch.linspace(0, 1, n_levels + 1, dtype=torch.float64, device=train.device)[1:-1]
    ordered = train.sort(0).values
    edges = ordered[((shares * len(train)).round().long() - 1).clamp(min=0)].T.contiguous()
    # Values equal to an edge lie below it: where most pixels are black, "bright" has to mean more than black.
    return [torch.searchsorted(edges, part.T.contiguous()).T.contiguous() for part in (train, *others)]
