"""Pictures of single latents: one card each, and one contact sheet of all.

Composed from pixels, since a card of two hundred marks takes matplotlib a second and this a few milliseconds.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saeflow.publish.canvas import BLUE, INK, ORANGE, SKY, SOFT, Canvas, fitted, text_width

_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
PATTERNS = (("gradient", "gradient"), ("gradient_input", f"gradient {_TIMES} input"), ("haufe", "Haufe pattern"))

_WIDTH, _HEIGHT, _MARGIN = 1000, 562, 24
_LEFT_END, _SPLIT, _RIGHT_END = 535, 568, 976
_TILE, _PATTERN = 56, 112


@dataclass(frozen=True)
class Features:
    """All latents of one SAE, as the analysis wrote them."""

    rows: Sequence[Mapping[str, Any]]
    """The table: value by column, for each latent."""
    arrays: Mapping[str, np.ndarray]
    """`features.npz`."""
    images: np.ndarray
    """Training images in [0, 1], [n, h, w]."""
    labels: np.ndarray
    """Their labels, [n]."""
    class_names: Sequence[str]
    title: str
    """Which SAE this is."""

    def pattern(self, name: str, latent: int) -> np.ndarray:
        """A pattern as an image, scaled to [-1, 1] by its largest absolute value."""
        values = self.arrays[f"pattern_{name}"][latent].reshape(self.arrays["image_shape"])
        return values / (np.abs(values).max() or 1)


def draw_cards(features: Features, folder: Path) -> None:
    """Write `latent-<index>.png` for every latent."""
    folder.mkdir(parents=True, exist_ok=True)
    for latent in range(len(features.rows)):
        card(features, latent).save(folder / f"latent-{latent:05d}.png")


def card(features: Features, latent: int) -> Canvas:
    """One latent: hypothesis, examples, nearest latents, patterns, labels and logit effects."""
    row, a = features.rows[latent], features.arrays
    canvas = Canvas(_WIDTH, _HEIGHT)
    _header(canvas, features, row)
    if row["dead"]:
        canvas.text(_MARGIN, 106, "No training image makes it fire: there are no examples, patterns or effects.", 13)
        return canvas
    _examples(canvas, features, 92, "Highest activations", a["top_images"][latent], a["top_values"][latent])
    title = "Random images on which it fires, highest first"
    _examples(canvas, features, 272, title, a["sample_images"][latent], a["sample_values"][latent])
    _neighbours(canvas, features, 452, latent)
    _patterns(canvas, features, 92, latent)
    _labels(canvas, features, 292, latent)
    _effects(canvas, features, 412, latent)
    return canvas


def gallery(features: Features, columns: int = 6) -> Canvas:
    """Contact sheet: every live latent with its Haufe pattern and top images, under its main label."""
    alive = [row for row in features.rows if not row["dead"]]
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(alive, key=lambda row: (row["label"], -row["label_share"], row["latent"])):
        groups.setdefault(row["label"], []).append(row)
    cell, height, head, top = 224, 84, 30, 84
    lines = sum(-(-len(rows) // columns) for rows in groups.values())
    canvas = Canvas(2 * _MARGIN + columns * cell - 16, top + len(groups) * head + lines * height + 10)
    canvas.text(_MARGIN, 14, features.title, 17, bold=True)
    dead = len(features.rows) - len(alive)
    notes = (
        f"{len(alive)} live latents, each under the label with most of its activation, the most selective first; "
        f"{dead} dead ones are left out.",
        "Each: Haufe pattern (red: brighter, blue: darker when it fires), number, five top images, and in words when "
        "it fires, with the AUROC of these words on unseen images (n/a: fires on none).",
    )
    for i, note in enumerate(notes):
        canvas.text(_MARGIN, 42 + 17 * i, note, 12, SOFT)
    y = top
    for label, rows in groups.items():
        canvas.line(_MARGIN, y + 2, canvas.width - _MARGIN)
        canvas.text(_MARGIN, y + 7, f"label {features.class_names[label]}", 14, bold=True)
        canvas.text(canvas.width - _MARGIN, y + 9, f"{len(rows)} latents", 11, SOFT, align="right")
        for i, row in enumerate(rows):
            x, line = _MARGIN + i % columns * cell, y + head + i // columns * height
            _cell(canvas, features, row, x, line, cell - 16)
        y += head - (-len(rows) // columns) * height
    return canvas


def _cell(canvas: Canvas, features: Features, row: Mapping[str, Any], x: int, y: int, width: int) -> None:
    """One latent of the contact sheet."""
    latent = row["latent"]
    canvas.pattern(x, y, features.pattern("haufe", latent), _TILE)
    shown = [index for index in features.arrays["top_images"][latent].tolist() if index >= 0][:5]
    for i, index in enumerate(shown):
        canvas.image(x + 64 + i * 29, y + 22, features.images[index], 28)
    canvas.text(x + 64, y + 1, f"{latent}", 12, bold=True)
    canvas.text(x + width, y + 1, _number(row["auroc"]), 12, align="right")
    canvas.text(x, y + 60, fitted(_short(row["hypothesis"]), 10, width), 10, SOFT)


def _short(hypothesis: str) -> str:
    """A hypothesis without the words that all of them share."""
    for long, short in (("too rare for a hypothesis", "rare"), ("no simple hypothesis", "none"), ("closest: ", "")):
        hypothesis = hypothesis.replace(long, short)
    return re.sub(r" \((top|lowest) \d+ %\)", "", hypothesis).replace("fires ", "")


def _header(canvas: Canvas, features: Features, row: Mapping[str, Any]) -> None:
    canvas.text(_MARGIN, 12, f"Latent {row['latent']}", 20, bold=True)
    canvas.text(_RIGHT_END, 18, features.title, 12, SOFT, align="right")
    size = 15 if text_width(row["hypothesis"], 15) <= 650 else 12
    canvas.text(_MARGIN, 57 - size, fitted(row["hypothesis"], size, 650), size)
    if not row["dead"]:
        rate = f"fires on {_percent(row['activation_rate'])} of the training images"
        canvas.text(_RIGHT_END, 45, rate, 12, align="right")
        strength = f"when it fires: mean {row['mean_active']:.3g}, highest {row['max_active']:.3g}"
        canvas.text(_RIGHT_END, 63, strength, 12, SOFT, align="right")
        if np.isnan(row["auroc"]):
            verdict = "cannot be tested: it fires on no test image, or on all"
        else:
            verdict = (
                f"as a prediction on unseen images: AUROC {row['auroc']:.2f} (shuffled: 95 % below "
                f"{row['auroc_null_p95']:.2f}), precision {row['precision']:.2f}, recall {row['recall']:.2f}"
            )
        canvas.text(_MARGIN, 63, verdict, 12, SOFT)
    canvas.line(_MARGIN, 84, _RIGHT_END)


def _examples(canvas: Canvas, features: Features, y: int, title: str, images: np.ndarray, values: np.ndarray) -> None:
    """Two lines of eight images, each over its label and activation."""
    canvas.text(_MARGIN, y, title, 12, bold=True)
    canvas.text(_LEFT_END, y + 1, "label, activation", 11, SOFT, align="right")
    for i, (index, value) in enumerate(zip(images[:16].tolist(), values[:16].tolist(), strict=True)):
        if index < 0:
            break
        left, top = _MARGIN + i % 8 * 65, y + 20 + i // 8 * 77
        canvas.image(left, top, features.images[index], _TILE)
        canvas.text(left, top + _TILE + 2, features.class_names[features.labels[index]], 11, bold=True)
        canvas.text(left + _TILE, top + _TILE + 2, f"{value:.3g}", 11, SOFT, align="right")


def _neighbours(canvas: Canvas, features: Features, y: int, latent: int) -> None:
    """Haufe patterns of the latents with the nearest decoder rows."""
    canvas.text(_MARGIN, y, "Nearest decoder rows", 12, bold=True)
    canvas.text(_LEFT_END, y + 1, "latent, cosine; its Haufe pattern", 11, SOFT, align="right")
    others, cosines = (features.arrays[name][latent].tolist() for name in ("neighbours", "cosines"))
    for i, (other, cosine) in enumerate(list(zip(others, cosines, strict=True))[:5]):
        left = _MARGIN + i * 106
        if features.rows[other]["dead"]:
            canvas.text(left + _TILE / 2, y + 59, "dead", 11, SOFT, align="center")
        else:
            canvas.pattern(left, y + 38, features.pattern("haufe", other), _TILE)
        canvas.frame(left, y + 38, _TILE)
        canvas.text(left, y + 19, f"{other}", 11, bold=True)
        canvas.text(left + 80, y + 19, _number(cosine), 11, SOFT, align="right")


def _patterns(canvas: Canvas, features: Features, y: int, latent: int) -> None:
    """The three patterns over their scores."""
    row = features.rows[latent]
    for i, (name, title) in enumerate(PATTERNS):
        left = _SPLIT + i * 148
        canvas.text(left, y, title, 12, bold=True)
        canvas.pattern(left, y + 20, features.pattern(name, latent), _PATTERN)
        canvas.frame(left, y + 20, _PATTERN)
        canvas.text(left, y + 136, f"deletion r² {_number(row[f'keep_r2_{name}'])}", 11)
        canvas.text(left, y + 150, f"smoothness {_number(row[f'smoothness_{name}'])}", 11, SOFT)
    canvas.text(_SPLIT, y + 170, _MINUS, 11, SOFT)
    canvas.pattern(_SPLIT + 12, y + 145, np.linspace(-1, 1, 64)[None].repeat(8, 0), 64)
    canvas.text(_SPLIT + 80, y + 170, "+ each to its own largest value", 11, SOFT)
    random = f"random pixels: r² {_number(row['keep_r2_random'])}"
    canvas.text(_RIGHT_END, y + 170, random, 11, SOFT, align="right")


def _labels(canvas: Canvas, features: Features, y: int, latent: int) -> None:
    """Share of the activation per label, with each label's share of the images as a tick."""
    shares = features.arrays["label_shares"][latent]
    prior = features.arrays["label_rows"] / features.arrays["label_rows"].sum()
    canvas.text(_SPLIT, y, "Activation by label", 12, bold=True)
    canvas.text(_RIGHT_END, y + 1, "line: share of the images", 11, SOFT, align="right")
    top, bottom, highest = y + 24, y + 86, float(max(shares.max(), prior.max()))
    canvas.text(_SPLIT + 32, top - 7, _percent(highest), 10, SOFT, align="right")
    canvas.text(_SPLIT + 32, bottom - 9, "0 %", 10, SOFT, align="right")
    for left, width, i in _bars(len(shares)):
        canvas.box(left, bottom - round((bottom - top) * shares[i] / highest), left + width, bottom, SKY)
        canvas.line(left - 2, bottom - round((bottom - top) * prior[i] / highest), left + width + 1, INK)
        canvas.text(left + width / 2, bottom + 3, features.class_names[i], 11, align="center")
    canvas.line(_SPLIT + 38, bottom, _RIGHT_END)


def _effects(canvas: Canvas, features: Features, y: int, latent: int) -> None:
    """Per class, what the logit loses when the latent is removed and gains when its decoder row is added."""
    row = features.rows[latent]
    removed, added = -features.arrays["ablation"][latent], features.arrays["addition"][latent]
    canvas.text(_SPLIT, y, "Logit", 12, bold=True)
    for x, color, text in ((54, BLUE, "lost when it is removed"), (226, ORANGE, "gained when it is added")):
        canvas.box(_SPLIT + x, y + 3, _SPLIT + x + 10, y + 13, color)
        canvas.text(_SPLIT + x + 15, y + 1, text, 11)
    top, bottom = y + 24, y + 104
    high, low = (float(limit([0, limit(removed), limit(added)])) for limit in (np.max, np.min))
    scale = (bottom - top) / ((high - low) or 1)
    zero = top + round(high * scale)
    for left, width, i in _bars(len(added)):
        half = width // 2
        for start, color, value in ((left, BLUE, removed[i]), (left + half, ORANGE, added[i])):
            end = zero - round(float(value) * scale)
            canvas.box(start, min(zero, end), start + half - 1, max(zero, end), color)
        canvas.text(left + width / 2, bottom + 4, features.class_names[i], 11, align="center")
    canvas.line(_SPLIT + 38, zero, _RIGHT_END, SOFT)
    canvas.text(_SPLIT + 32, zero - 6, "0", 10, SOFT, align="right")
    for at, value in ((top, high), (bottom, low)):
        if abs(at - zero) > 10:
            canvas.text(_SPLIT + 32, at - 6, f"{value:+.2g}".replace("-", _MINUS), 10, SOFT, align="right")
    size = f"size of the gain {row['effect_size']:.2g}; of a random direction {row['effect_size_random']:.2g}"
    canvas.text(_RIGHT_END, bottom + 22, size, 11, SOFT, align="right")


def _bars(n: int) -> Iterator[tuple[int, int, int]]:
    """Left edge, even width and number of each class's bar."""
    step = (_RIGHT_END - _SPLIT - 40) / n
    for i in range(n):
        yield _SPLIT + 40 + round((i + 0.15) * step), 2 * max(2, round(0.35 * step)), i


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _number(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.2f}".replace("-", _MINUS)
