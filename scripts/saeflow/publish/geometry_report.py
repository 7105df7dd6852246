"""Reports of a model's geometry, one Markdown page per phase, over its tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from saeflow.config.geometry import SCHEDULED, SHUFFLED, TEACHER
from saeflow.publish.geometry_figures import plain

CAPTIONS = {
    "polytopes_2d": "Words in the plane of a parent's vector and the offset of its largest child, the parent's vector "
    "having length 1. Filled: words that the vectors were fitted on; open: held out; gray: words of other concepts.",
    "polytopes_3d": "Children of a parent as vertices of a polytope, on the vertices' first three principal axes.",
    "angles": "Crossfit angles of all children and splits, with both controls; gray: where the median must lie.",
    "membership": "How well held-out words, and whole children left out, are told from other concepts' words.",
    "recovery": "Purity, leak mass and child purity along the training; bars: standard deviation over seeds.",
    "reconstruction": "Explained variance and recovered cross-entropy along the training.",
    "steering": "How the decoder rows of matched parents steer, along the training.",
    "dose_response": "Parent vectors and directions of equal norm added at each site: median over parents, with "
    "quartiles.",
}
FIGURES_OF = {
    "phase1_teacher": ("polytopes_2d", "polytopes_3d", "angles", "membership"),
    "phase2_baseline": ("reconstruction",),
    "phase3_hierarchical": ("recovery",),
    "phase4_steering": ("dose_response", "steering"),
}
RECONSTRUCTION = (
    "ev",
    "ev_concept",
    "one_minus_ev",
    "ce_recovered",
    "one_minus_ce",
    "l0",
    "dead_share",
    "used_parents",
)
RECOVERED = (
    "purity",
    "recall",
    "child_purity",
    "leak_mass",
    "leak_rate",
    "absorption",
    "full_absorption",
    "splits",
    "drift",
)
STEERED = ("steering_leak", "steering_leak_median", "steering_kl", "steerable")
UNTAUGHT = ("random",)


def arms(metrics: pd.DataFrame, columns: Sequence[str], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A row per step and arm: mean, sample standard deviation over seeds, and number of seeds, of some columns."""
    chosen = metrics if names is None else metrics[metrics["arm"].isin(names)]
    rows = []
    for (step, arm), group in chosen.groupby(["step", "arm"], sort=False):
        values = {c: (group[c].mean(), group[c].std(ddof=1)) for c in columns if c in group}
        rows.append({"arm": arm, "step": step, "n_seeds": group["seed"].nunique(), "values": values})
    return sorted(rows, key=lambda row: row["step"])


def number(value: float, spread: float | None = None) -> str:
    """Three decimals, or an en dash where there is none."""
    if value != value:
        return "\N{EN DASH}"
    text = f"{value:.3f}"
    return text if spread is None or spread != spread else f"{text} ± {spread:.3f}"


def verdict_of(table: pd.DataFrame) -> str:
    """pass, or what failed."""
    failed = table[table["verdict"] == "fail"]
    if failed.empty:
        return "pass"
    column = "quantity" if "quantity" in failed else "statistic"
    return f"fail ({'; '.join(failed[column])})"


def render(
    phase: str,
    study: str,
    model: str,
    spec: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    counts: Mapping[str, pd.DataFrame],
) -> str:
    """Markdown of one phase.

    Arguments:
        phase: one of FIGURES_OF.
        study, model: their names.
        spec: section `geometry`.
        tables: of the model, by name.
        counts: `concept_counts` in phase 1, `context_counts` in phase 2.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters |= {"number": number, "plain": plain, "records": lambda t: t.to_dict("records")}
    untaught = [
        name for name, arm in ((spec["hierarchical"] or {}).get("arms") or {}).items() if arm["start"] in UNTAUGHT
    ]
    return environment.get_template("geometry_report.md.j2").render(
        phase=phase,
        study=study,
        model=model,
        spec=spec,
        tables=tables,
        counts=counts,
        captions={name: CAPTIONS[name] for name in FIGURES_OF[phase]},
        arms=arms,
        untaught=untaught,
        columns={"reconstruction": RECONSTRUCTION, "recovered": RECOVERED, "steered": STEERED},
        compared={"taught": TEACHER, "scheduled": SCHEDULED, "shuffled": SHUFFLED},
        verdict_of=verdict_of,
    )


def csv(phase: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The table of a phase: what was measured, its target, interval and verdict."""
    if phase == "phase1_teacher":
        return tables["phase1_verdicts"]
    if phase == "phase4_steering":
        steered = tables["arms_verdicts"][tables["arms_verdicts"]["quantity"].str.contains("steering")]
        return pd.concat([tables["interventions_verdicts"], steered], ignore_index=True)
    if phase == "phase3_hierarchical":
        return tables["arms_verdicts"]
    return tables["arms"]
