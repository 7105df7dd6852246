"""Pictures of single latents: one card each, and one contact sheet of all.

Composed from pixels with Pillow, since a card of some two hundred marks takes matplotlib a second and this a few
milliseconds. Bytes depend on the content alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, SOFT, RULE, PAPER = (20, 20, 20), (105, 105, 105), (215, 215, 215), (255, 255, 255)
# Okabe & Ito 2008, as in `style`.
REMOVED, ADDED, MASS = (0, 114, 178), (213, 94, 0), (86, 180, 233)
# Ends of ColorBrewer's RdBu, told apart by readers with any kind of color vision; white is zero.
NEGATIVE, POSITIVE = (33, 102, 172), (178, 24, 43)
PATTERNS = (("gradient", "gradient"), ("gradient_input", "gradient × input"), ("haufe", "Haufe pattern"))

WIDTH, HEIGHT, MARGIN, SPLIT = 1000, 548, 24, 568
TILE, PATTERN = 56, 112


@dataclass(frozen=True)
class Features:
    """All latents of one SAE, as the analysis wrote them."""

    rows: Sequence[Mapping[str, object]]
    """The table, a mapping of column to value per latent."""
    arrays: Mapping[str, np.ndarray]
    images: np.ndarray
    """Training images in [0, 1], [n, h, w]."""
    labels: np.ndarray
    title: str
    """Which SAE this is."""
    class_names: Sequence[str]

    def pattern(self, name: str, latent: int) -> np.ndarray:
        """A pattern as an image, scaled to [-1, 1] by its largest absolute value."""
        values = self.arrays[f"pattern_{name}"][latent].reshape(self.arrays["image_shape"])
        return values / (np.abs(values).max() or 1)


def draw_cards(features: Features, folder: Path) -> None:
    """Write `latent-<index>.png` for every latent."""
    folder.mkdir(parents=True, exist_ok=True)
    for latent in range(len(features.rows)):
        save(card(features, latent), folder / f"latent-{latent:05d}.png")


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG. Level 4 takes a third of the default's time for a tenth more bytes."""
    picture.save(path, format="PNG", compress_level=4)


def card(features: Features, latent: int) -> Image.Image:
    """One latent: hypothesis, examples, nearest latents, patterns, labels and logit effects."""
    row = features.rows[latent]
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    _header(draw, features, row)
    if row["dead"]:
        _text(draw, MARGIN, 108, "It fires on no training image, so there are no examples, patterns or effects.", 13)
        return picture
    a = features.arrays
    _examples(picture, draw, features, 92, "Highest activations", a["top_images"][latent], a["top_values"][latent])
    title = "A random sample of the images on which it fires, by activation"
    _examples(picture, draw, features, 266, title, a["sample_images"][latent], a["sample_values"][latent])
    _neighbours(picture, draw, features, 440, latent)
    _patterns(picture, draw, features, 92, latent)
    _labels(draw, features, 282, latent)
    _effects(draw, features, 400, latent)
    return picture


def gallery(features: Features, columns: int = 6) -> Image.Image:
    """Contact sheet: each live latent with its Haufe pattern and top images, under its label, most selective first."""
    alive = [row for row in features.rows if not row["dead"]]
    groups: dict[int, list[Mapping[str, object]]] = {}
    for row in sorted(alive, key=lambda row: (row["label"], -row["label_share"], row["latent"])):
        groups.setdefault(row["label"], []).append(row)
    cell, height, head = 204, 76, 26
    lines = sum(-(-len(rows) // columns) for rows in groups.values())
    size = (2 * MARGIN + columns * cell, 78 + len(groups) * head + lines * height + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    _text(draw, MARGIN, 16, features.title, 18, bold=True)
    dead = len(features.rows) - len(alive)
    note = f"{len(alive)} live latents under the label with most of their activation, most selective first"
    _text(draw, MARGIN, 42, f"{note}; {dead} dead ones are left out. Each: Haufe pattern, five top images.", 12, SOFT)
    _text(draw, MARGIN, 58, "Number of the latent, its hypothesis, and the hypothesis's AUROC on unseen images.", 12, SOFT)
    y = 82
    for label, rows in groups.items():
        draw.line((MARGIN, y + 3, size[0] - MARGIN, y + 3), RULE)
        _text(draw, MARGIN, y + 7, f"{features.class_names[label]}  ({len(rows)})", 13, bold=True)
        y += head
        for i, row in enumerate(rows):
            _cell(picture, draw, features, row, MARGIN + i % columns * cell, y + i // columns * height, cell - 12)
        y += -(-len(rows) // columns) * height
    return picture


def _cell(
    picture: Image.Image, draw: ImageDraw.ImageDraw, features: Features, row: Mapping, x: int, y: int, width: int
) -> None:
    latent = row["latent"]
    picture.paste(diverging(features.pattern("haufe", latent), 48), (x, y + 2))
    shown = [index for index in features.arrays["top_images"][latent] if index >= 0][:5]
    for i, index in enumerate(shown):
        picture.paste(tile(features.images[index], 26), (x + 52 + i * 28, y + 24))
    score = row["auroc"]
    number = "" if np.isnan(score) else f"{score:.2f}"
    _text(draw, x + 52, y + 5, f"{latent}", 12, bold=True)
    _text(draw, x + width, y + 5, number, 12, anchor="ra")
    _text(draw, x, y + 54, _fitted(_short(row["hypothesis"]), 10, width), 10, SOFT)


def _short(hypothesis: str) -> str:
    """A hypothesis without the words that all of them share."""
    return hypothesis.removeprefix("fires ").replace("too rare for a hypothesis", "rare").replace("closest: fires ", "")


def _header(draw: ImageDraw.ImageDraw, features: Features, row: Mapping) -> None:
    _text(draw, MARGIN, 14, f"Latent {row['latent']}", 20, bold=True)
    _text(draw, WIDTH - MARGIN, 20, features.title, 12, SOFT, anchor="ra")
    _text(draw, MARGIN, 44, _fitted(row["hypothesis"], 15, 640), 15)
    if not row["dead"]:
        rate = f"fires on {_percent(row['activation_rate'])} of the training images"
        _text(draw, WIDTH - MARGIN, 46, rate, 12, anchor="ra")
        strength = f"activation when it fires: mean {row['mean_active']:.3g}, highest {row['max_active']:.3g}"
        _text(draw, WIDTH - MARGIN, 64, strength, 12, SOFT, anchor="ra")
        if np.isnan(row["auroc"]):
            verdict = "It fires on no test image, so the hypothesis cannot be tested."
        else:
            verdict = (
                f"as a prediction on unseen images: AUROC {row['auroc']:.2f} (shuffled: 95 % below "
                f"{row['auroc_null_p95']:.2f}), precision {row['precision']:.2f}, recall {row['recall']:.2f}"
            )
        _text(draw, MARGIN, 65, verdict, 12, SOFT)
    draw.line((MARGIN, 84, WIDTH - MARGIN, 84), RULE)


def _examples(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    features: Features,
    y: int,
    title: str,
    images: np.ndarray,
    values: np.ndarray,
) -> None:
    """Two lines of eight images, each over its label and activation."""
    _text(draw, MARGIN, y, title, 12, bold=True)
    _text(draw, SPLIT - 40, y + 1, "label, activation", 11, SOFT, anchor="ra")
    for i, (index, value) in enumerate(zip(images[:16].tolist(), values[:16].tolist(), strict=True)):
        if index < 0:
            break
        left, top = MARGIN + i % 8 * 65, y + 20 + i // 8 * 76
        picture.paste(tile(features.images[index], TILE), (left, top))
        _text(draw, left, top + TILE + 2, features.class_names[features.labels[index]], 11, bold=True)
        _text(draw, left + TILE, top + TILE + 2, f"{value:.3g}", 11, SOFT, anchor="ra")


def _neighbours(
    picture: Image.Image, draw: ImageDraw.ImageDraw, features: Features, y: int, latent: int
) -> None:
    """Haufe patterns of the latents with the nearest decoder rows."""
    _text(draw, MARGIN, y, "Nearest decoder rows: latent, cosine, Haufe pattern", 12, bold=True)
    pairs = zip(features.arrays["neighbours"][latent].tolist(), features.arrays["cosines"][latent].tolist(), strict=True)
    for i, (other, cosine) in enumerate(list(pairs)[:6]):
        left = MARGIN + i * 86
        picture.paste(diverging(features.pattern("haufe", other), TILE), (left, y + 38))
        _text(draw, left, y + 20, f"{other}", 11, bold=True)
        _text(draw, left + 76, y + 20, f"{cosine:.2f}".replace("-", "−"), 11, SOFT, anchor="ra")


def _patterns(
    picture: Image.Image, draw: ImageDraw.ImageDraw, features: Features, y: int, latent: int
) -> None:
    """The three patterns over their scores."""
    row = features.rows[latent]
    for i, (name, title) in enumerate(PATTERNS):
        left = SPLIT + i * 138
        _text(draw, left, y, title, 12, bold=True)
        picture.paste(diverging(features.pattern(name, latent), PATTERN), (left, y + 20))
        draw.rectangle((left - 1, y + 19, left + PATTERN, y + 20 + PATTERN), outline=RULE)
        _text(draw, left, y + 136, f"deletion r² {_number(row[f'keep_r2_{name}'])}", 11)
        _text(draw, left, y + 150, f"smoothness {_number(row[f'smoothness_{name}'])}", 11, SOFT)
    bar = diverging(np.linspace(-1, 1, 64)[None], 64).resize((64, 8))
    picture.paste(bar, (SPLIT + 14, y + 170))
    _text(draw, SPLIT, y + 166, "−", 12)
    _text(draw, SPLIT + 82, y + 166, "+   each scaled to its own largest value;", 11, SOFT)
    _text(draw, SPLIT + 408, y + 166, f"random pixels: r² {_number(row['keep_r2_random'])}", 11, SOFT, anchor="ra")


def _labels(draw: ImageDraw.ImageDraw, features: Features, y: int, latent: int) -> None:
    """Share of the activation per label, with each label's share of the images as a tick."""
    shares = features.arrays["label_shares"][latent]
    prior = features.arrays["label_rows"] / features.arrays["label_rows"].sum()
    _text(draw, SPLIT, y, "Activation by label", 12, bold=True)
    _text(draw, SPLIT + 408, y + 1, "tick: share of images", 11, SOFT, anchor="ra")
    top, bottom, highest = y + 22, y + 84, max(shares.max(), prior.max())
    _text(draw, SPLIT + 30, top - 6, _percent(highest), 10, SOFT, anchor="ra")
    _text(draw, SPLIT + 30, bottom - 9, "0 %", 10, SOFT, anchor="ra")
    for left, width, i in _columns(len(shares)):
        height = round((bottom - top) * shares[i] / highest)
        if height:
            draw.rectangle((left, bottom - height, left + width - 1, bottom - 1), MASS)
        at = bottom - round((bottom - top) * prior[i] / highest)
        draw.line((left - 2, at, left + width + 1, at), INK)
        _text(draw, left + width // 2, bottom + 3, features.class_names[i], 11, anchor="ma")
    draw.line((SPLIT + 36, bottom, SPLIT + 408, bottom), RULE)


def _effects(draw: ImageDraw.ImageDraw, features: Features, y: int, latent: int) -> None:
    """Per class, what the logit loses when the latent is removed and gains when its decoder row is added."""
    removed, added = -features.arrays["ablation"][latent], features.arrays["addition"][latent]
    _text(draw, SPLIT, y, "Logit", 12, bold=True)
    draw.rectangle((SPLIT + 42, y + 3, SPLIT + 51, y + 12), REMOVED)
    _text(draw, SPLIT + 56, y + 1, "lost when it is removed", 11)
    draw.rectangle((SPLIT + 202, y + 3, SPLIT + 211, y + 12), ADDED)
    _text(draw, SPLIT + 216, y + 1, "gained when it is added", 11)
    top, bottom = y + 22, y + 106
    high, low = (float(f(0, f(f(removed), f(added)))) for f in (max_, min_))
    span = (high - low) or 1
    zero = top + round((bottom - top) * high / span)
    for left, width, i in _columns(len(added)):
        for value, color, start in ((removed[i], REMOVED, left), (added[i], ADDED, left + width // 2)):
            end = zero - round((bottom - top) * float(value) / span)
            if end != zero:
                draw.rectangle((start, min(zero, end), start + width // 2 - 2, max(zero, end) - 1), color)
        _text(draw, left + width // 2, bottom + 6, features.class_names[i], 11, anchor="ma")
    draw.line((SPLIT + 36, zero, SPLIT + 408, zero), SOFT)
    for at, value in ((top, high), (bottom, low)):
        if abs(at - zero) > 8:
            _text(draw, SPLIT + 30, at - 6, f"{value:+.2g}".replace("-", "−"), 10, SOFT, anchor="ra")
    _text(draw, SPLIT + 30, zero - 6, "0", 10, SOFT, anchor="ra")
    sizes = f"size {features.rows[latent]['effect_size']:.2g}, random direction {features.rows[latent]['effect_size_random']:.2g}"
    _text(draw, SPLIT + 408, bottom + 24, sizes, 11, SOFT, anchor="ra")


def _columns(n: int) -> Iterator[tuple[int, int, int]]:
    """Left edge, width and number of each class's bar."""
    step = 372 / n
    for i in range(n):
        yield SPLIT + 38 + round(i * step + 0.15 * step), max(4, round(0.7 * step)), i


def max_(values: object, *more: object) -> float:
    return float(np.max([values, *more])) if more else float(np.max(values))


def min_(values: object, *more: object) -> float:
    return float(np.min([values, *more])) if more else float(np.min(values))


def tile(image: np.ndarray, size: int) -> Image.Image:
    """A gray image in [0, 1], its longer side scaled to `size` pixels."""
    return _scaled(Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)), size)


def diverging(values: np.ndarray, size: int) -> Image.Image:
    """Values in [-1, 1] as colors: blue below zero, white at it, red above."""
    strength = np.abs(values)[..., None]
    end = np.where(values[..., None] < 0, np.float64(NEGATIVE), np.float64(POSITIVE))
    return _scaled(Image.fromarray((255 + (end - 255) * strength).round().astype(np.uint8)), size)


def _scaled(picture: Image.Image, size: int) -> Image.Image:
    """Pixels stay squares when they grow; they are averaged when they shrink."""
    scale = size / max(picture.size)
    shape = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(shape, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _text(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    text: str,
    size: int,
    color: tuple[int, int, int] = INK,
    *,
    bold: bool = False,
    anchor: str = "la",
) -> None:
    draw.text((x, y), text, fill=color, font=_font(size, bold), anchor=anchor)


def _fitted(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it would be wider."""
    font = _font(size, False)
    if font.getlength(text) <= width:
        return text
    while font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _number(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.2f}".replace("-", "−")
