"""The pages of the site: what they say, from the study's tables, and the files that every page shares."""

import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from saeflow import strict_yaml
from saeflow.publish.injection_tables import VARIANT, plain
from saeflow.publish.site import data, inversion
from saeflow.publish.site.features import pictures
from saeflow.publish.site.overview import overview
from saeflow.publish.site.study import Study
from saeflow.record import versions

HERE = Path(__file__).parent
PAIRS_COLUMNS = ["label", "tier", "site", "source", "target", "transfer"]
CURVE_COLUMNS = ["label", "tier", "site", "gamma", "transfer", "specificity"]
GEOMETRY_TABLES = {
    "verdicts": "phase1_verdicts",
    "points": "phase1_points",
    "arms": "arms",
    "comparisons": "arms_verdicts",
    "interventions": "interventions",
}
"""Tables of the geometry page, by the name that they have there; the last three are of hierarchical SAEs."""
SUMMARY_COLUMNS = [
    *("label", "family", "tier", "site", "transfer", "transfer_std", "transfer_low", "transfer_high", "worst_transfer"),
    *("specificity", "specificity_std", "preservation", "preservation_std", "excess", "n_pairs"),
    *("added_multiply_adds", "reading"),
]


def write(study: Study, folder: Path, plotly: Path) -> None:
    """Write every page, what pages share, and the data of the pages of injection, inversion and geometry.

    Arguments:
        plotly: plotly.min.js, which the site brings along.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = [*study.pages, *(["feature.html"] if "features.html" in study.pages else [])]
    for page in files:
        content = environment.get_template(f"{page}.j2").render(
            study=study.config["study"],
            pages=study.pages,
            page="features.html" if page == "feature.html" else page,
            config=study.config,
            config_yaml=strict_yaml.written(dict(study.config)),
            versions=versions(),
            **(overview(study) if page == "index.html" else {}),
        )
        (folder / page).write_text(content, encoding="utf-8")
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    for source in [*sorted((HERE / "assets").iterdir()), plotly]:
        shutil.copyfile(source, assets / source.name)
    if study.injection:
        data.write(folder / "injection.js", "injection", injection(study))
    if study.inversion:
        by = study.config["inversion"]["clustering"]["by"]
        shown = {name: inversion.shown(tables, by) for name, tables in study.inversion.items()}
        data.write(folder / "inversion.js", "inversion", shown)
    if study.geometry:
        data.write(folder / "geometry.js", "geometry", geometry(study))


def injection(study: Study) -> dict[str, Any]:
    """Data of the injection page; confusions and examples by the number of the summary's row."""
    labels = {
        name: [plain(row) for row in study.injection[name].to_dict("records")] for name in ("summary", "pairs", "curve")
    }
    tables = {name: study.injection[name].assign(label=label) for name, label in labels.items()}
    summary, examples = study.injection["summary"], study.injection["examples"]
    number = {tuple(row): i for i, row in enumerate(summary[VARIANT].to_numpy().tolist())}
    confusion: dict[int, list[list[int]]] = {}
    for variant, rows in study.injection["confusion"].groupby(VARIANT, sort=False):
        confusion[number[variant]] = rows[["label", "before", "after", "n"]].to_numpy().tolist()
    shown: dict[int, dict[str, list[list[float]]]] = {}
    for (*variant, kind), rows in examples.groupby([*VARIANT, "kind"], sort=False):
        shown.setdefault(number[tuple(variant)], {})[kind] = rows[["image", "share"]].to_numpy().tolist()
    return {
        "architectures": study.config["classifiers"]["architectures"],
        "concept": study.config["injection"]["concept"],
        "summary": tables["summary"][SUMMARY_COLUMNS],
        "pairs": tables["pairs"][PAIRS_COLUMNS],
        "curve": tables["curve"][CURVE_COLUMNS],
        "confusion": confusion,
        "examples": shown,
        "shape": study.images.images.shape[-2:],
        "images": pictures(study.images, np.unique(examples["image"].to_numpy())),
    }


def geometry(study: Study) -> dict[str, Any]:
    """Data of the geometry page, by language model."""
    found = {}
    for model, tables in study.geometry.items():
        shown = {name: tables[table] for name, table in GEOMETRY_TABLES.items() if table in tables}
        points = shown["points"]
        solid = points[points.view == "polytope"].drop(columns="view")
        found[model] = shown | {"points": solid}
    return found
