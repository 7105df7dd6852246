"""Draw every figure of the study, as PNG and SVG, from its tables alone."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from saeflow.publish import figures, style
from saeflow.rule import run


def main(*, tables: list[Path], png: list[Path], svg: list[Path]) -> None:
    paths = {path.stem: path for path in tables}
    for path_png, path_svg in zip(png, svg, strict=True):
        draw, table = figures.FIGURES[path_png.stem]
        figure = draw(pd.read_parquet(paths[table]))
        style.save(figure, path_png, path_svg)
        plt.close(figure)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
