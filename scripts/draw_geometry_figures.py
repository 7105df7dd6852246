"""Draw the figures of one phase of a model's geometry, as PNG and SVG, from its tables alone."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from saeflow.publish import style
from saeflow.publish.geometry_figures import FIGURES
from saeflow.rule import run


def main(*, tables: list[Path], png: list[Path], svg: list[Path]) -> None:
    frames = {path.stem: pd.read_parquet(path) for path in tables}
    for path_png, path_svg in zip(png, svg, strict=True):
        figure = FIGURES[path_png.stem](frames)
        style.save(figure, path_png, path_svg)
        plt.close(figure)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
