"""The map of a dictionary's latents as one page: no library, no network; a point shows its latent on hover."""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SIDE, _EDGE = 720, 24
_NOISE = -1  # label of latents of no cluster


def write(
    path: Path,
    latents: Int[np.ndarray, " n"],
    map_: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, " n"],
    roles: Mapping[int, str],
    texts: Mapping[int, str],
) -> None:
    """Write the page.

    Arguments:
        latents: of the points.
        map_: their places.
        labels: cluster of each, -1 for none.
        roles: of the chosen latents, drawn larger.
        texts: shown on hover.
    """
    low, high = map_.min(0), map_.max(0)
    places = _EDGE + (map_ - low) / np.maximum(high - low, 1e-12) * (_SIDE - 2 * _EDGE)
    points = []
    for latent, (x, y), label in zip(latents.tolist(), places, labels.tolist(), strict=True):
        where = "no cluster" if label == _NOISE else f"cluster {label}"
        title = "\n".join(
            filter(None, [f"feature {latent}, {where}", roles.get(latent, ""), texts.get(latent, "")[:300]])
        )
        colour = "#bbbbbb" if label == _NOISE else _COLOURS[label % len(_COLOURS)]
        radius, edge = (7, ' stroke="#000"') if latent in roles else (4, "")
        points.append(
            f'<circle cx="{x:.1f}" cy="{_SIDE - y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.75"{edge} '
            f'tabindex="0"><title>{html.escape(title)}</title></circle>'
        )
    noise = 100 * (labels == _NOISE).mean() if len(labels) else 0
    said = f"{len(set(labels.tolist()) - {_NOISE})} clusters; {noise:.0f} % of latents in none"
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Map of features</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<style>body{font:14px sans-serif;margin:1em}circle:hover,circle:focus{stroke:#000;stroke-width:2}</style>"
        f"<h1>Map of features</h1><p>{said}. Large points were chosen.</p>"
        f'<svg role="img" aria-label="Map of features" width="{_SIDE}" height="{_SIDE}">{"".join(points)}</svg>'
        "</html>\n",
        encoding="utf-8",
    )
