"""Answers of the catalog as tables for a terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from saeflow.catalog.contexts import text_of
from saeflow.terminal import printable

_BARS = " ▁▂▃▄▅▆▇█"
_WARM = ("", "on #3a2a10", "on #5e3d0c", "on #8a5608", "on #b87105", "bold black on #f59f00")
"""Background of a token by its share of the peak."""


def cell(value: Any) -> str:
    """A value as a table shows it: four significant digits, nothing for null."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if math.isfinite(value) else str(value)
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M %Z")
    return printable(str(value))


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str | None = None) -> Table:
    """Rows under headings; columns without any value are left out.

    Arguments:
        columns: heading by key.
    """
    shown = {key: head for key, head in columns.items() if any(row.get(key) is not None for row in rows)} or columns
    made = Table(title=title and Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key, head in shown.items():
        number = all(isinstance(row.get(key), int | float | None) for row in rows)
        whole = number or key in ("name", "run")  # what a reader copies
        made.add_column(Text(printable(head)), justify="right" if number else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        made.add_row(*(Text(cell(row.get(key))) for key in shown))
    return made


RUNS = {
    "name": "run",
    "architecture": "SAE",
    "d_in": "d_in",
    "d_sae": "latents",
    "l0": "L0",
    "explained_variance": "EV",
    "dead_share": "dead",
    "ce_recovered_zero": "CE rec. (zero)",
    "accuracy_change_pp": "accuracy (pp)",
}
COUNTS = {
    "name": "run",
    "features": "features",
    "dead": "dead",
    "dense": "dense",
    "mean_interpretability": "mean interpretability",
}
FEATURES = {
    "run": "run",
    "feature": "feature",
    "interpretability": "interpr.",
    "density": "density",
    "max_activation": "max",
    "label": "what it stands for",
}
CONCEPTS = {
    "concept": "concept",
    "feature": "feature",
    "auroc": "AUROC",
    "selectivity": "selectivity",
    "null_p95": "shuffled 95 %",
    "control_auroc": "random weights",
    "dense_auroc": "best coordinate",
    "probe_auroc": "probe",
    "passed": "passed",
}
INJECTION = {
    "method": "method",
    "variant": "variant",
    "tier": "may see",
    "transfer": "transfer",
    "preservation": "preservation",
    "specificity": "specificity",
    "n": "n",
}


def analysis(found: Mapping[str, Any]) -> RenderableType:
    """The answer of `queries.analyze`."""
    run, parts = found["run"], []
    sae = run["sae"] or {}
    facts = {"kind": run["kind"], "model": run["model"], "hook point": run["hook_point"], "variant": run["variant"]}
    facts |= {"SAE": sae.get("architecture"), "weights sha256": sae.get("weights_sha256"), "digest": run["digest"]}
    title = Text(printable(run["name"]))
    parts.append(Panel(_facts(facts | (sae.get("metrics") or {})), title=title, title_align="left", expand=False))
    if found["features"]:
        counts = {key: found["features"][key] for key in ("n", "dead", "dense", "rare")}
        quantiles = [{"of": name, **values} for name, values in found["features"]["quantiles"].items()]
        heads = {key: f"{float(key):.0%}" for key in quantiles[0] if key != "of"}
        parts.append(Text(", ".join(f"{value} {key}" for key, value in counts.items()).replace(" n", " features", 1)))
        parts.append(table(quantiles, {"of": "living features, quantile"} | heads))
    if found["concepts"]:
        parts.append(table(found["concepts"], CONCEPTS, "concepts, best feature of each"))
    if found["injection"]:
        parts.append(table(found["injection"], INJECTION, "injection, mean over pairs and seeds"))
    return Group(*parts)


def details(run: str, found: Mapping[str, Any], contexts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One feature: numbers, histogram, tokens, neighbours, concepts, contexts.

    Arguments:
        found: of `queries.feature`.
        contexts: rows of `contexts.parquet`; without them the catalog's own examples are shown.
    """
    evidence = found["evidence"]
    keys = ("interpretability", "density", "mean_activation", "max_activation", "decoder_norm", "dead")
    facts = {key.replace("_", " "): found[key] for key in keys}
    if "top_tokens" in evidence:
        facts |= {"promotes": _pairs(evidence["top_tokens"], evidence["top_logits"])}
        facts |= {"suppresses": _pairs(evidence["bottom_tokens"], evidence["bottom_logits"])}
        facts |= {"fires with": _pairs(evidence["neighbours"], evidence["neighbour_coactivation"])}
        facts |= {"activations": bars(evidence["histogram"])}
    else:
        facts |= {key: value for key, value in evidence.items() if not isinstance(value, list | dict)}
    title = printable(f"{run}  feature {found['feature']}: {found['label']}")
    parts: list[RenderableType] = [Panel(_facts(facts), title=Text(title), title_align="left")]
    if found["concepts"]:
        parts.append(table(found["concepts"], {"concept": "concept", "rank": "rank"} | CONCEPTS, "concepts"))
    parts += map(context, contexts)
    parts += [] if contexts else map(_example, evidence.get("examples", ()))
    return Group(*parts)


_OUTCOMES = {"passed": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("·", "yellow")}


def checks(results: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Results of the verification of a package, one a line."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("", "check", "what holds, or what is wrong"):
        made.add_column(head, overflow="fold")
    for result in results:
        sign, style = _OUTCOMES[result["outcome"]]
        made.add_row(Text(sign, style), Text(result["name"]), Text(printable(result["problem"] or result["says"])))
    return made


def context(row: Mapping[str, Any]) -> Text:
    """One context, each token on a background as warm as its activation; the peak stands in «»."""
    line = Text(f"{cell(row['activation']):>8}  ", style="dim")
    for i, (token, activation) in enumerate(zip(row["tokens"], row["activations"], strict=True)):
        warmth = math.ceil(max(activation, 0) / row["activation"] * (len(_WARM) - 1)) if row["activation"] > 0 else 0
        shown = printable(text_of([token]))
        peak = i == row["position"]
        line.append(f"«{shown}»" if peak else shown, style=_WARM[min(warmth, len(_WARM) - 1)] or "none")
    return line


def _example(example: Mapping[str, Any]) -> Text:
    """A context of the catalog's own, which has no activation but that of the peak."""
    before, token, after = (printable(example[part]) for part in ("before", "token", "after"))
    return Text.assemble((f"{cell(example['activation']):>8}  ", "dim"), before, (f"«{token}»", _WARM[-1]), after)


def bars(counts: Sequence[int]) -> str:
    """A histogram in one line, by the square root of the counts: rare strong activations stay visible."""
    highest = max(counts, default=0)
    return "".join(_BARS[math.ceil(math.sqrt(n / highest) * (len(_BARS) - 1))] if highest else " " for n in counts)


def _facts(facts: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        if value is not None:
            grid.add_row(Text(key, style="dim"), Text(cell(value)))
    return grid


def _pairs(names: Iterable[Any], values: Iterable[float]) -> str:
    return ", ".join(f"{printable(str(name))!r} {value:.3g}" for name, value in zip(names, values, strict=True))
