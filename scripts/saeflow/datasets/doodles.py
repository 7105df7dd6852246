"""Synthetic images, made without a real image of any class that they are to stand in for: doodles and fragments."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

_BLOCK = 1024
_POINTS = 32
_STROKES = 64
_MAX_STROKES = 4
_STROKE_COUNTS = (0.3, 0.4, 0.2, 0.1)
_CORNERS = 4
# Radius of the pen in image sides, before it is matched with the ink of real images.
_PEN = (0.025, 0.075)
_TRIAL = 256
# Images smaller than this are drawn four times as large and averaged, as scanned digits are.
_SMALL = 16
# A warp shifts points of this grid over the image by this standard deviation, in image sides.
_WARP_POINTS, _WARP = 4, 1 / 14


def doodles(
    n: int, own: Float[Tensor, "images 1 h w"], *, seed: int, collage_share: float = 0.4
) -> Float[Tensor, "n 1 h w"]:
    """Random strokes and collages.

    A stroke doodle has one to four curves or broken lines, drawn with a round pen as wide as gives `own`'s mean
    brightness, and fitted into the bounding box of the ink of an image of `own`. A collage joins an image of `own` with
    a stroke doodle or with another image of `own`, each turned, scaled, sheared, mirrored and shifted at random: one on
    either side of a random line, or the brighter of both pixels.

    Arguments:
        n: number of images.
        own: images of the classes that may be seen; they set size and place, and lend collages their parts.
        seed: of every draw; images are drawn on the CPU.
        collage_share: share of collages.
    """
    generator = torch.Generator().manual_seed(seed)
    own = own.cpu()
    boxes, size = _ink_boxes(own), own.shape[-1]
    trial = _strokes(_TRIAL, size, boxes, 1.0, generator)
    pen = float((own.mean() / trial.mean()).clamp(0.5, 4))
    blocks = []
    for start in range(0, n, _BLOCK):
        count = min(_BLOCK, n - start)
        drawn = _strokes(count, size, boxes, pen, generator)
        pasted = _collages(drawn, own, generator)
        is_collage = torch.rand(count, 1, 1, 1, generator=generator) < collage_share
        blocks.append(torch.where(is_collage, pasted, drawn))
    return torch.cat(blocks)


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _pick(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return images[torch.randint(len(images), (n,), generator=generator)]


def _strokes(
    n: int, size: int, boxes: Int[Tensor, "images 4"], pen: float, generator: torch.Generator
) -> Float[Tensor, "n 1 h w"]:
    """Curves and broken lines."""
    points, drawn = _paths(n, generator)
    points = _fitted(points, drawn, _pick(boxes, n, generator).float(), generator)
    radius = pen * size * _uniform(generator, *_PEN, n, 1, 1)
    zoom = 4 if size < _SMALL else 1
    pixel = (torch.arange(size * zoom) + 0.5) / zoom
    # One pixel of the canvas from ink to paper.
    ink = ((radius - _distance(points, drawn, pixel)) * zoom + 0.5).clamp(0, 1)
    return avg_pool2d(ink[:, None], zoom)


def _distance(
    points: Float[Tensor, "n points 2"], drawn: Bool[Tensor, "n points"], pixel: Float[Tensor, " size"]
) -> Float[Tensor, "n size size"]:
    """From each pixel to the nearest drawn point; of few strokes at a time, which stay in the processor's cache."""
    nearest = torch.full((len(points), len(pixel), len(pixel)), torch.inf)
    for stroke, of_stroke in zip(points.split(_POINTS, 1), drawn.split(_POINTS, 1), strict=True):
        for images in of_stroke[:, 0].nonzero().squeeze(1).split(_STROKES):
            dy, dx = ((stroke[images, :, axis, None] - pixel).square() for axis in (0, 1))
            squares = (dy[..., :, None] + dx[..., None, :]).amin(1)
            nearest[images] = torch.minimum(nearest[images], squares)
    return nearest.sqrt()


def _paths(n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n points 2"], Bool[Tensor, "n points"]]:
    """Points along the strokes, row and column, and which of them belong to a stroke that is drawn."""
    corners = _uniform(generator, 0, 1, n, _MAX_STROKES, _CORNERS, 2)
    t = torch.linspace(0, 1, _POINTS)
    bernstein = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    curves = torch.einsum("kt,nskd->nstd", bernstein, corners)
    n_corners = torch.randint(2, _CORNERS + 1, (n, _MAX_STROKES, 1), generator=generator)
    place = t * (n_corners - 1)
    first = place.floor().clamp(max=n_corners - 2)
    share = (place - first)[..., None]
    index = first.long()[..., None].expand(*first.shape, 2)
    lines = corners.gather(2, index) * (1 - share) + corners.gather(2, index + 1) * share
    is_curve = torch.rand(n, _MAX_STROKES, 1, 1, generator=generator) < 0.5
    n_strokes = 1 + torch.multinomial(torch.tensor(_STROKE_COUNTS), n, replacement=True, generator=generator)
    drawn = (torch.arange(_MAX_STROKES) < n_strokes[:, None])[..., None].expand(-1, -1, _POINTS)
    return torch.where(is_curve, curves, lines).flatten(1, 2), drawn.flatten(1)


def _fitted(points: Tensor, drawn: Tensor, boxes: Float[Tensor, "n 4"], generator: torch.Generator) -> Tensor:
    """Paths scaled into boxes: filled in one direction, in the other anywhere from the path's own proportions up."""
    low = points.masked_fill(~drawn[..., None], torch.inf).amin(1)
    high = points.masked_fill(~drawn[..., None], -torch.inf).amax(1)
    scale = (boxes[:, 2:] - boxes[:, :2]) / (high - low).clamp(min=1e-3)
    least = scale.amin(1, keepdim=True)
    scale = least * (scale / least) ** torch.rand(len(points), 1, generator=generator)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (points - (low + high)[:, None] / 2) * scale[:, None] + centre[:, None]


def _ink_boxes(images: Float[Tensor, "n 1 h w"]) -> Int[Tensor, "n 4"]:
    """Bounding box of each image's ink: top, left, bottom, right, in pixels."""
    ink = images[:, 0] > 0.25
    first, last = [], []
    for hit in (ink.any(2), ink.any(1)):
        first.append(hit.int().argmax(1))
        last.append(hit.shape[1] - hit.flip(1).int().argmax(1))
    return torch.stack(first + last, 1)


def _collages(drawn: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
    """Images of `own` joined with others or with stroke doodles."""
    n = len(drawn)
    first, second = (_moved(_pick(own, n, generator), generator) for _ in range(2))
    kind = torch.rand(2, n, 1, 1, 1, generator=generator)
    second = torch.where(kind[0] < 0.5, drawn, second)
    side = _side(n, own.shape[-1], 0.4, generator)
    return torch.where(kind[1] < 0.7, torch.where(side, first, second), torch.maximum(first, second))


def _side(n: int, size: int, most: float, generator: torch.Generator) -> Bool[Tensor, "n 1 h w"]:
    """One side of a random line that passes the centre within `most` half image sides."""
    grid = torch.linspace(-1, 1, size)
    angle, offset = _uniform(generator, 0, 2 * torch.pi, n, 1, 1), _uniform(generator, -most, most, n, 1, 1)
    return (grid[:, None] * angle.sin() + grid * angle.cos() > offset)[:, None]


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned, mostly by little, scaled, sheared, mirrored every fourth time, and shifted."""
    n = len(images)
    angle = torch.pi * _uniform(generator, -1, 1, n) ** 3
    shear = _uniform(generator, -0.4, 0.4, n)
    scale = _uniform(generator, 0.8, 1.3, 2, n)
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < 0.25).float()
    shift = _uniform(generator, -0.15, 0.15, 2, n)
    cos, sin = angle.cos(), angle.sin()
    rows = (
        torch.stack([mirror * scale[0] * cos, scale[1] * (shear * cos - sin), shift[0]], 1),
        torch.stack([mirror * scale[0] * sin, scale[1] * (shear * sin + cos), shift[1]], 1),
    )
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False).clamp(0, 1)


def fragments(n: int, own: Float[Tensor, "images 1 h w"], *, seed: int) -> Float[Tensor, "n 1 h w"]:
    """Images of `own` and parts of them, warped: real pen strokes in shapes that no class of `own` has.

    Each is an image of `own`, turned, scaled, sheared, mirrored and shifted at random; as it is, or what lies on one
    side of a random line, alone or with the other side of a second image. A smooth random field then moves its points.

    Arguments:
        n: number of images.
        own: images of the classes that may be seen.
        seed: of every draw; images are made on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    own = own.cpu()
    blocks = []
    for start in range(0, n, _BLOCK):
        count = min(_BLOCK, n - start)
        first, second = (_moved(_pick(own, count, generator), generator) for _ in range(2))
        kind = torch.rand(count, 1, 1, 1, generator=generator)
        other = torch.where(kind < 2 / 3, second, torch.zeros(()))
        part = torch.where(_side(count, own.shape[-1], 0.5, generator), first, other)
        blocks.append(_warped(torch.where(kind < 1 / 3, first, part), generator))
    return torch.cat(blocks)


def _warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images whose points are moved by a smooth field."""
    n, size = len(images), images.shape[-1]
    points = torch.randn(n, 2, _WARP_POINTS, _WARP_POINTS, generator=generator)
    # Coordinates of a grid go from -1 to 1: two image sides.
    field = 2 * _WARP * interpolate(points, size=(size, size), mode="bicubic", align_corners=True)
    still = affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, still + field.permute(0, 2, 3, 1), align_corners=False).clamp(0, 1)
