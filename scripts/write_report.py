"""Write the study's report: one HTML page over the tables, figures and galleries beside it."""

from pathlib import Path

import pandas as pd

from saeflow.publish import injection_report
from saeflow.publish import report as pages
from saeflow.rule import run


def main(
    *,
    tables: list[Path],
    figures: list[Path],
    galleries: list[Path],
    injection: list[Path],
    language: list[Path],
    report: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        tables, figures, galleries: what is shown.
        injection: report, summary and figure of the injection study; none without one.
        language: tables of the language study; none without one.
        report: .html to write.
        cfg: `study` (the whole config).
    """
    frames = {path.stem: pd.read_parquet(path) for path in tables}
    pictures = {path.stem: pages.picture(path, report, pages.CAPTIONS[path.stem]) for path in figures}
    sheets = [pages.picture(path, report, _caption(path)) for path in galleries if path.suffix == ".png"]
    part = _injection(*injection, report) if injection else None
    texts = {path.stem: pd.read_parquet(path) for path in language}
    report.write_text(pages.render(cfg["study"], frames, pictures, sheets, part, texts), encoding="utf-8")


def _injection(page: Path, summary: Path, figure: Path, report: Path) -> pages.Injection:
    return pages.Injection(
        page=page.relative_to(report.parent).as_posix(),
        best=injection_report.best(pd.read_parquet(summary)),
        figure=pages.picture(figure, report, injection_report.CAPTIONS[figure.stem]),
    )


def _caption(gallery: Path) -> str:
    model, hook, sae = gallery.parts[-4:-1]
    return f"Features of {sae} on {model}, {hook}: highest activating images, input patterns and hypotheses."


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
