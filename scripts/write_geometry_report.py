"""Write the report of one phase of a model's geometry: a Markdown page and a table, over its tables and figures."""

from pathlib import Path

import pandas as pd

from saeflow.publish import geometry_report
from saeflow.rule import run


def main(*, tables: list[Path], counts: list[Path], text: Path, csv: Path, cfg: dict) -> None:
    """
    Arguments:
        tables: of the phase, by their names.
        counts: .csv of `build_concepts` or `label_contexts`, where the phase tells of them.
        text, csv: page and table to write; the page's name is the phase.
        cfg: `study` and `network` (names), `geometry` (section).
    """
    frames = {path.stem: pd.read_parquet(path) for path in tables}
    numbers = {path.stem: pd.read_csv(path) for path in counts}
    about = (cfg["study"], cfg["network"], cfg["geometry"])
    text.write_text(geometry_report.render(text.stem, *about, frames, numbers), encoding="utf-8")
    geometry_report.csv(text.stem, frames).to_csv(csv, index=False, float_format="%.6g")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
