"""The first page of the site: what was run, and each part's headline numbers with the file behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from saeflow.publish import goals
from saeflow.publish.injection_tables import KEEPS, plain
from saeflow.publish.site.study import Study


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
        headlines += _compared(study.injection["summary"], config)
    if study.inversion:
        headlines.append(_inversion(study.inversion))
    if study.geometry:
        headlines.append(_geometry({model: tables["phase1_verdicts"] for model, tables in study.geometry.items()}))
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
        rule="gather_tables_language",
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


def _compared(summary: pd.DataFrame, config: Mapping[str, Any]) -> Iterator[Headline]:
    """Rows with a number of an older write-up beside it, and goals with the row that comes closest; where there are
    any for this task."""
    table = {"file": "../injection/tables/summary.csv", "rule": "gather_injection"}
    told = summary.dropna(subset=["older_transfer"])
    if len(told):
        rows = [
            [
                *(plain(row), row["tier"], row["site"], f"{100 * row['transfer']:.1f}"),
                *(f"{100 * row['older_transfer']:.1f}", row["verdict"] or "none"),
            ]
            for row in told.to_dict("records")
        ]
        yield Headline(
            "Beside the older write-ups",
            "Transfer in percent, measured here by one protocol and as an older write-up states it.",
            ["method", "may see", "site", "here", "older write-up", "verdict"],
            rows,
            **table,
        )
    spec, roles = config["injection"], config["classifiers"]["roles"]
    sought = goals.of_task(
        dataset=config["dataset"]["name"],
        target_classes=tuple(roles[spec["target"]]["classes"]),
        source_classes=tuple(roles[spec["source"]]["classes"]),
        concept=spec["concept"],
        lookalike=spec["lookalike"],
    )
    found = goals.closest(summary[summary["family"] != "reference"], sought)
    if found:
        rows = [
            [
                *(goal["text"], plain(goal["row"]), "met" if goal["shortfall"] <= 0 else "missed"),
                f"{100 * max(goal['shortfall'], 0):.1f} pp of {goal['metric']}",
            ]
            for goal in found
        ]
        yield Headline(
            "Goals",
            "In percent; the row that comes closest.",
            ["goal", "closest", "verdict", "short by"],
            rows,
            **table,
        )


def _inversion(saes: Mapping[str, Mapping[str, pd.DataFrame]]) -> Headline:
    """What was found for each SAE's chosen features."""
    rows = []
    for name, tables in saes.items():
        cells = [name, str(int(tables["selection"]["role"].notna().sum()))]
        for method in ("random", "gcg", "epo"):
            texts = tables.get("texts")
            values = None if texts is None else texts.loc[texts["method"] == method, "ratio"]
            cells.append("none" if values is None or values.dropna().empty else f"{values.median():.2f}")
        told = tables.get("explanations")
        for column in ("detection", "top_token_detection"):
            cells.append("none" if told is None else f"{told[column].mean():.2f}")
        rows.append(cells)
    return Headline(
        "Inversion",
        "Activation on the text that a search found, over the highest in the data: median over the chosen features. "
        "Explanations: mean AUROC at telling text held out on which the feature fires; chance is 0.5.",
        ["SAE", "features", "random text", "GCG", "EPO", "explanation", "its top token"],
        rows,
        "../language/inversion",
        "invert_features",
    )


def _geometry(verdicts: Mapping[str, pd.DataFrame]) -> Headline:
    """How many tests each model and each control pass."""
    rows = []
    for model, table in verdicts.items():
        judged = table[table["verdict"].isin(["pass", "fail"])]
        for case, own in judged.groupby("case", sort=False):
            passed = int((own["verdict"] == "pass").sum())
            whole = "the hierarchy is there" if passed == len(own) else "not shown"
            rows.append([model, str(case), f"{passed} of {len(own)}", whole])
    return Headline(
        "Geometry of concepts",
        "Tests for a hierarchy under the causal inner product that pass: of the model, and of controls with other "
        "rows, parents or inner product.",
        ["model", "case", "tests passed", "verdict"],
        rows,
        "../geometry",
        "measure_geometry",
    )
