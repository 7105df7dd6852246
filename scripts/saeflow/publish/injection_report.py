"""The injection study in words: a Markdown page over its tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from saeflow.publish import goals, older_numbers
from saeflow.publish.injection_tables import CONTROLS, DISTILLED, KEEPS, penultimate, plain, rung, tier_order

CAPTIONS = {
    "pairs": "Transfer (%) of the first variant of each method on every ordered pair of architectures, mean over "
    "seeds. Gray: the method does not apply to the pair.",
    "tradeoff": "Every variant: transfer against specificity (left and high is better). A line joins the variants that "
    "no other of their tier beats in both; those that no other of any tier beats have a letter. Crosses: variants that "
    "keep too little of the target's own classes to be compared.",
    "curves": "Transfer against specificity at equal preservation, as gamma times the target's own uncertainty is "
    "added to the concept's score; gamma grows from 0, the ringed end. First variant of each method.",
    "controls": "First variant of each method, filled, beside its controls, open.",
    "sweeps": "Transfer (full lines) and specificity (dashed) against the number that a sweep changes; bars: standard "
    "deviation over seeds.",
    "forgetting": "Continual injection: share of each injected class that is still answered right after each step, and "
    "accuracy on the target's own classes.",
}
_NONE, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
TIERS = {
    "T0": "the weights of source and target",
    "T1": "and images of the shared classes",
    "T1+": "and images of the target's own classes",
    "T2": "and synthetic inputs, made without any real image of a class that the target does not know",
    "T3": "and real images, without labels, of classes that neither network knows",
    "oracle": "labelled images of the concept: an upper bound, never a method",
}


@dataclass(frozen=True)
class Study:
    """What a study asks for, in the words of the report.

    Arguments:
        name: of the study.
        dataset: its images.
        architectures: of source and target networks.
        n_pairs: ordered pairs of them that the study runs.
        seeds: one network of each role and architecture for each.
        target_classes, source_classes: what the networks are trained on.
        unseen: classes that neither is trained on.
        concept, lookalike: classes.
        preservation: share of the own calibration images that are not answered with the concept.
        synthetic_images: number of doodles.
        bootstrap: resamples.
        goals: of `goals.of_task`.
    """

    name: str
    dataset: str
    architectures: Sequence[str]
    n_pairs: int
    seeds: Sequence[int]
    target_classes: Sequence[int]
    source_classes: Sequence[int]
    unseen: Sequence[int]
    concept: int
    lookalike: int
    preservation: float
    synthetic_images: int
    bootstrap: int
    goals: Sequence[Mapping[str, Any]] = ()

    @property
    def shared(self) -> list[int]:
        """Classes that both know."""
        return [c for c in self.target_classes if c in self.source_classes]


def render(
    study: Study, tables: Mapping[str, pd.DataFrame], about: Sequence[Mapping[str, Any]], figures: Sequence[str]
) -> str:
    """Markdown of the report.

    Arguments:
        study: what was asked for.
        tables: `summary`, `pareto`, `sweeps` and `stages` of `injection_tables`.
        about: each method's `text` and `variants`, as `inject` writes them.
        figures: names of the figures that the study draws.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters |= {"share": share, "count": _count, "plain": plain, "listed": _listed, "auroc": _auroc}
    summary = tables["summary"]
    injected = _injected(summary)
    return environment.get_template("injection_report.md.j2").render(
        study=study,
        captions={name: CAPTIONS[name] for name in figures},
        tiers={tier: _rows(rows) for tier, rows in _by_tier(injected)},
        tier_texts={name: text for name, text in TIERS.items() if name in set(summary["tier"].map(rung))},
        references=_rows(summary[(summary["family"] == "reference") | (summary["tier"] == "oracle")]),
        best=best(summary),
        goals=goals.closest(_injected(summary), study.goals),
        distilled=_rows(injected[injected["reading"] == "distillation"]),
        distilled_share=DISTILLED,
        keeps=KEEPS,
        controls=[name for name in CONTROLS if summary[f"transfer_{name}"].notna().any()],
        partial=_partial(summary, about, study.n_pairs),
        has_older="verdict" in summary,
        older=_rows(summary[summary["verdict"] != ""]) if "verdict" in summary else [],
        margin=older_numbers.MARGIN,
        front=_rows(tables["pareto"].query("on_front").sort_values("specificity")),
        sweeps=_rows(tables["sweeps"]),
        stages=_rows(tables["stages"]),
        about=about,
    )


def best(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each tier, at the penultimate layer and elsewhere, the row with the largest transfer less specificity.

    Rows that keep less than `KEEPS` of the target's own classes do not count.

    Returns:
        rows of the summary, with `penultimate`, and `leads` for the best of all tiers.
    """
    injected = _injected(summary)
    rows = injected[injected["preservation"] >= KEEPS].assign(
        penultimate=lambda t: penultimate(t["site"]), gain=lambda t: t["transfer"] - t["specificity"]
    )
    if rows.empty:
        return []
    chosen = rows.loc[rows.groupby(["tier", "penultimate"])["gain"].idxmax()]
    chosen["leads"] = chosen.groupby("penultimate")["gain"].transform("max") == chosen["gain"]
    return sorted(_rows(chosen), key=lambda row: (not row["penultimate"], tier_order(row["tier"])))


def _injected(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of methods, without references and oracles."""
    return summary[(summary["family"] != "reference") & (summary["tier"] != "oracle")]


def _by_tier(summary: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows by tier, from the least knowledge to the most; within one the highest transfer first."""
    groups = {tier: rows.sort_values("transfer", ascending=False) for tier, rows in summary.groupby("tier")}
    return [(tier, groups[tier]) for tier in sorted(groups, key=tier_order)]


def _partial(summary: pd.DataFrame, about: Sequence[Mapping[str, Any]], n_pairs: int) -> list[dict[str, Any]]:
    """Variants that were not run on every pair, and whether that is because they need equal architectures."""
    equal = {content["method"]: content["equal_architectures"] for content in about}
    rows = _rows(summary[summary["n_pairs"] < n_pairs])
    return [row | {"equal_architectures": equal[row["method"]]} for row in rows]


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")


def share(value: float, spread: float | None = None) -> str:
    """A share in percent with one decimal, and its deviation; a dash if there is none."""
    if pd.isna(value):
        return _NONE
    text = f"{round(100 * value, 1) + 0.0:.1f}".replace("-", _MINUS)
    return text if spread is None or pd.isna(spread) else f"{text} ± {100 * spread:.1f}"


def _count(value: float) -> str:
    """A whole number with thousands apart; a dash if there is none."""
    return _NONE if pd.isna(value) else f"{value:,.0f}".replace("-", _MINUS)


def _auroc(value: float) -> str:
    return _NONE if pd.isna(value) else f"{value:.3f}"


def _listed(values: Sequence[object]) -> str:
    """Words in a row: "a, b and c"."""
    words = list(map(str, values))
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "none"
