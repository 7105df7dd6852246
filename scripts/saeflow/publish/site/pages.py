"""The pages of the site: what they say, from the study's tables, and the files that every page shares."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml

from saeflow.datasets.images import ImageSplit
from saeflow.publish.injection_tables import KEEPS, VARIANT, plain
from saeflow.publish.site import data, inversion
from saeflow.publish.site.features import pictures
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


@dataclass(frozen=True)
class Headline:
    """A table of the overview, and where its numbers are from.

    Arguments:
        title, note: above the table.
        names: of the columns.
        rows: cells, as they are read.
        file: the table behind it, as seen from the page.
        rule: that makes the file.
    """

    title: str
    note: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    file: str
    rule: str


@dataclass(frozen=True)
class Study:
    """What the pages are made from.

    Arguments:
        config: the whole study, as builtins.
        tables: `classifiers` of studies with networks, and with their SAEs `saes` and `features_summary`.
        language: `saes` and `features_summary` of language models; empty without one.
        injection: `summary`, `pairs`, `curve`, `confusion` and `examples` of the injection study; empty without one.
        images: of the test split, for the injection study.
        inversion: what `saeflow.publish.site.inversion` reads, of each SAE by its name; empty without one.
        geometry: `GEOMETRY_TABLES` of each language model whose geometry was measured; empty without one.
    """

    config: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    language: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    injection: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    images: ImageSplit | None = None
    inversion: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    geometry: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)

    @property
    def pages(self) -> dict[str, str]:
        """Files and names of the pages, in the order of the menu."""
        found = {"index.html": "Overview"}
        if "saes" in self.tables or self.language:
            found["features.html"] = "Features"
        if self.injection:
            found["injection.html"] = "Injection"
        if self.inversion:
            found["inversion.html"] = "Inversion"
        if self.geometry:
            found["geometry.html"] = "Geometry"
        return found | {"run.html": "Run"}


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
            config_yaml=yaml.safe_dump(dict(study.config), sort_keys=False, allow_unicode=True),
            versions=versions(),
            **(overview(study) if page == "index.html" else {}),
        )
        (folder / page).write_text(content)
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


def overview(study: Study) -> dict[str, Any]:
    """Lead, facts and headline tables of the first page."""
    config, tables = study.config, study.tables
    leads: list[str] = []
    facts: dict[str, Any] = {}
    headlines = []
    if "classifiers" in tables:
        networks = tables["classifiers"]
        leads.append(f"{', '.join(config['classifiers']['architectures'])} trained on {config['dataset']['name']}")
        facts |= {"networks": len(networks), "mean test accuracy": f"{100 * networks.test_accuracy.mean():.1f} %"}
    if "saes" in tables:
        leads.append(f"sparse autoencoders at hook point {', '.join(config['activations']['hook_points'])}")
        facts["sparse autoencoders"] = len(tables["saes"])
        facts["features analysed"] = f"{tables['features_summary'].latents.sum():,}"
        headlines.append(_saes(tables["saes"]))
    if study.language:
        leads.append(f"sparse autoencoders of the language models {', '.join(config['language']['models'])}")
        facts["of language models"] = len(study.language["saes"])
        facts["their features"] = f"{study.language['features_summary'].features.sum():,}"
        headlines.append(_language(study.language["saes"]))
    if study.injection:
        leads.append(f"class {config['injection']['concept']} injected into networks that never saw it")
        facts["injection methods"] = len(config["injection"]["methods"])
        headlines.append(_injection(study.injection["summary"]))
    lead = "; ".join(leads)
    return {"lead": f"{lead[:1].upper()}{lead[1:]}.", "facts": facts, "headlines": headlines}


def _spread(values: pd.Series, scale: float, digits: int) -> str:
    """Mean of the values, and in brackets the lowest and the highest."""
    low, mean, high = (f"{scale * value:.{digits}f}" for value in (values.min(), values.mean(), values.max()))
    return f"{mean} ({low} to {high})"


def _quality(saes: pd.DataFrame, by: list[str], metrics: Mapping[str, tuple[str, float, int]]) -> dict[str, Any]:
    """Columns and rows of SAEs: names, how many, and each metric's spread."""
    known = {name: how for name, how in metrics.items() if name in saes}
    rows = [
        [*map(str, names), str(len(group)), *(_spread(group[name], *how[1:]) for name, how in known.items())]
        for names, group in saes.groupby(by, sort=False)
    ]
    columns = [*(name.replace("_", " ") for name in by), "trained", *(name for name, *_ in known.values())]
    return {"names": columns, "rows": rows}


def _saes(saes: pd.DataFrame) -> Headline:
    """Quality of the SAEs by variant, over networks and seeds."""
    metrics = {
        "l0": ("L0", 1, 2),
        "explained_variance": ("explained variance", 1, 3),
        "accuracy_change_pp": ("accuracy change (pp)", 1, 2),
        "dead_share": ("dead (%)", 100, 1),
    }
    return Headline(
        title="Sparse autoencoders",
        note="Held-out split: mean over all networks and seeds, in brackets the lowest and the highest. Accuracy "
        "change: of the network with the reconstruction spliced in.",
        **_quality(saes, ["variant"], metrics),
        file="../tables/saes.csv",
        rule="gather_tables",
    )


def _language(saes: pd.DataFrame) -> Headline:
    """Quality of the SAEs of language models by hook point and variant, over seeds."""
    metrics = {
        "l0": ("L0", 1, 2),
        "explained_variance": ("explained variance", 1, 3),
        "ce_recovered_zero": ("cross-entropy recovered (%)", 100, 1),
        "dead_share": ("dead (%)", 100, 1),
    }
    return Headline(
        title="Sparse autoencoders of language models",
        note="Text held out: mean over seeds, in brackets the lowest and the highest. Cross-entropy recovered: with "
        "the reconstruction in place of the activation, against zeros in its place.",
        **_quality(saes, ["model", "hook_point", "variant"], metrics),
        file="../language/tables/saes.csv",
        rule="gather_language_tables",
    )


def _injection(summary: pd.DataFrame) -> Headline:
    """The rows with the highest transfer of every family that is no reference, of those that keep the own classes."""
    rows = []
    ours = summary[(summary.family != "reference") & (summary.n_pairs > 0) & (summary.preservation >= KEEPS)]
    for family, group in ours.groupby("family", sort=False):
        best = group.loc[group.transfer.idxmax()].to_dict()
        cells = [f"{100 * best[name]:.1f}" for name in ("worst_transfer", "specificity", "preservation", "excess")]
        cells.append(f"{best['added_multiply_adds']:,.0f}")
        interval = "{:.1f} ({:.1f} to {:.1f})".format(
            *(100 * best[name] for name in ("transfer", "transfer_low", "transfer_high"))
        )
        rows.append([plain(best), family, best["tier"], best["site"], interval, *cells])
    return Headline(
        "Concept injection",
        f"The variant of each family with the highest transfer among those that keep {100 * KEEPS:.0f} % of the own "
        "classes, in percent; in brackets the 95 % bootstrap interval "
        "over seeds and images.",
        [
            *("method", "family", "may see", "site", "transfer", "worst pair", "look-alikes taken", "own classes kept"),
            *("above an untrained target", "multiply-adds added"),
        ],
        rows,
        "../injection/tables/summary.csv",
        "gather_injection",
    )


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
