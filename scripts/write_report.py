"""Write the study's report: one HTML page over the tables, figures and galleries beside it."""

from pathlib import Path

import pandas as pd

from saeflow.publish import report as pages
from saeflow.rule import run


def main(*, tables: list[Path], figures: list[Path], galleries: list[Path], report: Path, cfg: dict) -> None:
    frames = {path.stem: pd.read_parquet(path) for path in tables}
    pictures = {path.stem: pages.picture(path, report, pages.CAPTIONS[path.stem]) for path in figures}
    sheets = [pages.picture(path, report, _caption(path)) for path in galleries if path.suffix == ".png"]
    report.write_text(pages.render(cfg["study"], frames, pictures, sheets))


def _caption(gallery: Path) -> str:
    model, hook, sae = gallery.parts[-4:-1]
    return f"Features of {sae} on {model}, {hook}: highest activating images, input patterns and hypotheses."


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
