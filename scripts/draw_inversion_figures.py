"""Draw the figures of inverse embeddings, as PNG and SVG, and the map of features as a page, from tables alone."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from saeflow.publish import inversion_figures, inversion_map, style
from saeflow.rule import run


def main(*, tables: list[Path], png: list[Path], svg: list[Path], page: list[Path], cfg: dict) -> None:
    """
    Arguments:
        tables: .parquet of the stages before, known by their names.
        png, svg: figures to write, known by their names.
        page: the interactive map to write, or nothing.
        cfg: `by`, the clusters that are shown.
    """
    loaded = {path.stem: pd.read_parquet(path) for path in tables}
    for path_png, path_svg in zip(png, svg, strict=True):
        figure = inversion_figures.draw(path_png.stem, loaded)
        style.save(figure, path_png, path_svg)
        plt.close(figure)
    for path in page:
        inversion_map.write(path, loaded["selection"], cfg["by"], loaded.get("explanations"))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
