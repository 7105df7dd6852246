"""A small paletted picture that text, gray images and signed patterns are put on, in a few milliseconds.

The palette is fixed: 128 grays, 64 shades of blue and of red for the signs, four solid colors. So a pixel is one byte,
text blends by plain arithmetic on the grays, and a PNG is a third as large as in full color.
"""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WHITE, INK, SOFT, RULE = 127, 10, 52, 107
BLUE, ORANGE, SKY = 252, 253, 254
_NEGATIVE, _POSITIVE, _SHADES = 128, 190, 62
_SOLID = {BLUE: (0, 114, 178), ORANGE: (213, 94, 0), SKY: (86, 180, 233)}  # Okabe & Ito 2008, as in `style`
# Ends of ColorBrewer's RdBu, told apart by readers with any kind of color vision; white is zero.
_ENDS = {_NEGATIVE: (33, 102, 172), _POSITIVE: (178, 24, 43)}


class Canvas:
    """A white picture of the given size, in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        # Drawn as gray and given its palette when saved: Pillow blends text into grays, not into palettes.
        self._picture = Image.new("L", (width, height), WHITE)
        self._draw = ImageDraw.Draw(self._picture)

    def text(
        self, x: float, y: float, text: str, size: int, color: int = INK, *, bold: bool = False, align: str = "left"
    ) -> None:
        """A line of text on white; `y` is its top, `x` its left end, center or right end."""
        stamp, width = _stamp(text, size, bold)
        x -= {"left": 0, "center": width / 2, "right": width}[align]
        self._picture.paste(color, (round(x), round(y)), stamp)

    def image(self, x: int, y: int, values: np.ndarray, size: int) -> None:
        """A gray image with values in [0, 1], in a square of `size` pixels."""
        self._paste(x, y, (np.clip(values, 0, 1) * WHITE).round(), size)

    def pattern(self, x: int, y: int, values: np.ndarray, size: int) -> None:
        """Values in [-1, 1] as colors: blue below zero, white at it, red above, in a square of `size` pixels."""
        shade = np.minimum((np.abs(values) * _SHADES).round(), _SHADES)
        first = np.where(values < 0, _NEGATIVE, _POSITIVE)
        self._paste(x, y, np.where(shade == 0, WHITE, first + shade - 1), size)

    def box(self, left: int, top: int, right: int, bottom: int, color: int) -> None:
        """A filled rectangle up to, not including, `right` and `bottom`; nothing if it is empty."""
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), color)

    def line(self, left: int, y: int, right: int, color: int = RULE) -> None:
        """A horizontal line of one pixel."""
        self._draw.line((left, y, right, y), color)

    def frame(self, x: int, y: int, size: int) -> None:
        """A thin line around a square picture."""
        self._draw.rectangle((x - 1, y - 1, x + size, y + size), outline=RULE)

    def save(self, path: Path) -> None:
        """Write a PNG: equal pixels, equal bytes."""
        picture = self._picture.copy()
        picture.putpalette(_palette())
        picture.save(path, format="PNG", compress_level=4)

    def pixels(self) -> np.ndarray:
        """Palette indices [height, width]."""
        return np.asarray(self._picture)

    def _paste(self, x: int, y: int, indices: np.ndarray, size: int) -> None:
        # Whole factors, so that all pixels of the image stay of one size; a larger image is thinned out, since palette
        # indices cannot be averaged.
        factor, step = max(1, size // max(indices.shape)), -(-max(indices.shape) // size)
        large = indices.astype(np.uint8)[::step, ::step].repeat(factor, 0).repeat(factor, 1)
        h, w = large.shape
        self._picture.paste(Image.fromarray(large), (x + (size - w) // 2, y + (size - h) // 2))


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Width of a line of text, in pixels."""
    return _font(size, bold).getlength(text)


def fitted(text: str, size: int, width: float) -> str:
    """The text, cut with an ellipsis where it would be wider."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


@lru_cache(maxsize=8192)
def _stamp(text: str, size: int, bold: bool) -> tuple[Image.Image, float]:
    """A line of text as a mask, and its width; most lines come again on the next card."""
    font = _font(size, bold)
    width = font.getlength(text)
    mask = Image.new("L", (int(width) + 3, sum(font.getmetrics())), 0)
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return mask, width


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, laid out by Pillow alone: Raqm needs a library of the machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache
def _palette() -> bytes:
    """Red, green and blue of each of the 256 indices."""
    colors = np.zeros((256, 3))
    colors[: WHITE + 1] = (np.arange(WHITE + 1) / WHITE * 255)[:, None]
    for first, end in _ENDS.items():
        strength = (np.arange(_SHADES) + 1)[:, None] / _SHADES
        colors[first : first + _SHADES] = 255 + (np.array(end) - 255) * strength
    for index, color in _SOLID.items():
        colors[index] = color
    return colors.round().astype(np.uint8).tobytes()
