"""One look for every figure of the project, and bytes that depend on its content alone."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe & Ito 2008, without the yellow that is lost on white: told apart by readers with any kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMN, PAGE = 3.5, 7.2  # widths of one and two columns of a paper, inches

plt.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "legend.fontsize": 7,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 200,
        "svg.hashsalt": "saeflow",
        "svg.fonttype": "path",
    }
)


def colour(index: int) -> str:
    """Colour of the index-th series."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Marker of the index-th series, so that colour is never the only difference."""
    return MARKERS[index % len(MARKERS)]


def save(figure: plt.Figure, *paths: Path) -> None:
    """Write a figure in the forms that the paths' endings name, laid out once, without dates, and close nothing."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, metadata=metadata)
