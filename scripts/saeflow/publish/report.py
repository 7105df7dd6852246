"""The report: one HTML page beside the results, which opens from disk and needs no network."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from saeflow import strict_yaml
from saeflow.publish.injection_report import share
from saeflow.publish.injection_tables import plain
from saeflow.record import versions

CAPTIONS = {
    "classifiers": "Test accuracy of every network on the classes that it was trained on.",
    "sae_quality": "Every SAE on the held-out split. Accuracy change: accuracy of the network with the reconstruction "
    "spliced in, minus its own accuracy, in percentage points (pp).",
    "sae_training": "Training batches: explained variance and L0 against optimiser steps; line: mean over seeds, band: "
    "lowest to highest seed.",
    "feature_rates": "How often latents fire on the held-out split; the leftmost bin holds the latents that fire on "
    "fewer than 1 in 10,000 images, dead ones among them.",
    "hypotheses": "How well each latent's hypothesis, chosen on the training split, tells on held-out images when the "
    "latent fires (AUROC); dashed: the same with the images shuffled against the latent.",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its path as seen from the page, and what stands under it."""

    path: str
    caption: str


@dataclass(frozen=True)
class Injection:
    """What the page says of the injection study: where its own report is, and its best rows.

    Arguments:
        page: path of the report, as seen from the page.
        best: rows of `injection_report.best`.
        figure: transfer against specificity.
    """

    page: str
    best: Sequence[Mapping[str, Any]]
    figure: Picture


def picture(path: Path, page: Path, caption: str) -> Picture:
    """A picture beside or below the page."""
    return Picture(Path(os.path.relpath(path, page.parent)).as_posix(), caption)


def render(
    study: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Picture],
    galleries: Iterable[Picture],
    injection: Injection | None = None,
    language: Mapping[str, pd.DataFrame] | None = None,
) -> str:
    """HTML of the report.

    Arguments:
        study: the whole config, as builtins.
        tables: `classifiers`, and of studies with SAEs `saes_summary` and `features_summary`, as
            `saeflow.publish.tables` makes them; none in a study of language models alone.
        figures: pictures by the names in `saeflow.publish.figures`.
        galleries: contact sheets of features.
        injection: of studies with that section.
        language: `saes_summary` and `features_summary` of the language study, if there is one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"table": _rows, "share": share, "plain": plain}
    return environment.get_template("report.html.j2").render(
        study=study,
        study_yaml=strict_yaml.written(dict(study)),
        tables=tables,
        figures=figures,
        galleries=list(galleries),
        injection=injection,
        language=language or {},
        versions=versions(),
    )


def _rows(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Header and cells of a summary, metrics as `mean ± standard deviation`; names that never change are left out."""
    same = [name for name in ("role", "hook_point") if name in table and table[name].nunique() == 1]
    names = [name for name in table.columns if not name.endswith("_std") and name not in same]
    rows = []
    for _, row in table.iterrows():
        cells = []
        for name in names:
            value, spread = row[name], row.get(f"{name}_std")
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            cells.append(f"{_fixed(value, spread)} ± {_fixed(spread, spread)}" if pd.notna(spread) else text)
        rows.append(cells)
    return {"names": [name.replace("_", " ") for name in names], "rows": rows}


def _fixed(value: float, spread: float) -> str:
    """A number with as many decimals as two digits of its spread have, four at most."""
    decimals = next((d for d in range(1, 4) if spread >= 10.0 ** (1 - d)), 4)
    return f"{value:.{decimals}f}"
