"""The figures of the injection study, each drawn from tables alone; shares are shown in percent."""

from collections.abc import Callable, Iterator
from string import ascii_lowercase
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from saeflow.publish.injection_tables import CONTROLS, RUNGS, VARIANT, plain, rung, tier_order, with_statistics
from saeflow.publish.style import COLUMN, PAGE, colour, marker

CONTROL_LABELS = {
    "": "the method",
    "untrained_target": "untrained target",
    "blind_source": "source without the concept",
    "untrained_source": "untrained source",
    "no_lookalike_inputs": "look-alike inputs dropped",
}


class Figure(NamedTuple):
    """How a figure is drawn, and from which table."""

    draw: Callable[[pd.DataFrame], plt.Figure]
    table: str


def pairs(table: pd.DataFrame) -> plt.Figure:
    """Transfer (%) of each method's first variant, source by target architecture; gray where it does not apply."""
    chosen = list(_first_variants(table[table["family"] != "reference"]))
    names = list(dict.fromkeys([*table["source"], *table["target"]]))
    n_columns = min(5, len(chosen))
    n_rows = -(-len(chosen) // n_columns)
    # One pair of axes for all: a panel of its own for each takes twice as long to lay out and draw.
    figure, axes = plt.subplots(figsize=(PAGE * n_columns / 5 + 0.3, 1.42 * n_rows + 0.6))
    shades = plt.get_cmap("Blues").with_extremes(bad="0.85")
    across, down = len(names) + 0.5, len(names) + 2.2
    corners = [(i % n_columns * across, i // n_columns * down) for i in range(len(chosen))]
    for (left, top), rows in zip(corners, chosen, strict=True):
        square = rows.pivot(index="source", columns="target", values="transfer").reindex(index=names, columns=names)
        values = 100 * square.to_numpy(float)
        extent = (left - 0.5, left + len(names) - 0.5, top + len(names) - 0.5, top - 0.5)
        axes.imshow(values, cmap=shades, vmin=0, vmax=100, extent=extent)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                shade = "white" if value > 60 else "black"
                axes.text(left + column, top + row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=shade)
        title = f"{_wrapped(rows.iloc[0]['method'])}\n{rows.iloc[0]['tier']}"
        axes.text(left + (len(names) - 1) / 2, top - 0.6, title, ha="center", va="bottom", fontsize=6.5)
    columns, lines = (
        [i * step + j for i in range(n) for j in range(len(names))] for n, step in ((n_columns, across), (n_rows, down))
    )
    axes.set_xticks(columns, names * n_columns, rotation=90)
    axes.set_yticks(lines, names * n_rows)
    axes.set(xlim=(-0.5, n_columns * across - 1), ylim=(n_rows * down - 2.7, -2.2), aspect="auto", frame_on=False)
    axes.tick_params(length=0, labelsize=6)
    axes.grid(visible=False)
    axes.set_xlabel("target")
    axes.set_ylabel("source")
    return figure


def tradeoff(table: pd.DataFrame) -> plt.Figure:
    """Transfer against specificity of every variant, by tier; a line joins those that no other of their tier beats."""
    figure, columns = plt.subplots(1, 2, figsize=(PAGE, 4.4), sharey=True)
    for axes, inside in zip(columns, (True, False), strict=True):
        rows = table[table["penultimate"] == inside]
        for tier, group in rows.groupby("tier", sort=False):
            shade = colour(RUNGS.index(rung(tier)))
            fill = "none" if with_statistics(tier) else shade
            for keeps, points in group.groupby("keeps"):
                ring = {"s": 16, "facecolors": fill, "edgecolors": shade}
                look = ring if keeps else {"s": 10, "color": shade, "marker": "x", "linewidths": 0.8}
                axes.scatter(100 * points["specificity"], 100 * points["transfer"], **look)
            front = group[group["on_front_of_tier"]].sort_values(["specificity", "transfer"])
            style = "--" if with_statistics(tier) else "-"
            axes.plot(100 * front["specificity"], 100 * front["transfer"], style, color=shade, linewidth=0.8)
        axes.set_xscale("symlog", linthresh=5)
        axes.set_xticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set(xlim=(-0.3, 110), ylim=(-2, 102), xlabel="look-alike answered with the concept (%)")
        axes.set_title("penultimate layer" if inside else "any other site")
        _name_points(axes, rows[rows["on_front"]])
    columns[0].set_ylabel("transfer (%)")
    rungs = [name for name in RUNGS if name in set(table["tier"].map(rung))]
    handles = [Line2D([], [], marker="o", linestyle="", color=colour(RUNGS.index(name)), label=name) for name in rungs]
    if table["tier"].map(with_statistics).any():
        hollow = {"markerfacecolor": "none", "linestyle": "--", "color": "0.3"}
        handles.append(Line2D([], [], marker="o", label="with the source's statistics (& B)", **hollow))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _name_points(axes: plt.Axes, rows: pd.DataFrame) -> None:
    """A letter at each point, points that lie together sharing one text, and below the panel what each stands for."""
    key, groups = [], []
    for letter, row in zip(ascii_lowercase, rows.sort_values("transfer", ascending=False).itertuples(), strict=False):
        place = (100 * row.specificity, 100 * row.transfer)
        near = [g for g in groups if abs(g[0][0] - place[0]) < 0.4 and abs(g[0][1] - place[1]) < 4]
        if near:
            near[0][1].append(letter)
        else:
            groups.append((place, [letter]))
        key.append(f"{letter}  {_name(row)}, {row.tier}")
    for place, letters in groups:
        axes.annotate(" ".join(letters), place, xytext=(3, 4), textcoords="offset points", fontsize=7)
    axes.text(0, -0.2, "\n".join(key), transform=axes.transAxes, fontsize=6, ha="left", va="top")


def curves(table: pd.DataFrame) -> plt.Figure:
    """Transfer against specificity as gamma grows, first variant of each method; a panel per tier."""
    chosen = list(_first_variants(table[table["family"] != "reference"]))
    tiers = sorted({rung(rows.iloc[0]["tier"]) for rows in chosen}, key=RUNGS.index)
    figure, grid = plt.subplots(len(tiers), 1, figsize=(PAGE, 2.1 * len(tiers)), sharex=True, squeeze=False)
    for axes, tier in zip(grid[:, 0], tiers, strict=True):
        for i, rows in enumerate(r for r in chosen if rung(r.iloc[0]["tier"]) == tier):
            label = f"{plain(rows.iloc[0]['method'])}, {rows.iloc[0]['tier']}"
            style = ("-", "--", ":")[i // 7 % 3]
            x, y = 100 * rows["specificity"], 100 * rows["transfer"]
            axes.plot(x, y, style, color=colour(i), marker=marker(i), markersize=3, linewidth=0.9, label=label)
            axes.plot(x.iloc[:1], y.iloc[:1], linestyle="", marker="o", markersize=7, fillstyle="none", color=colour(i))
        axes.set(title=tier, ylim=(-2, 102), ylabel="transfer (%)")
        axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=2.5, borderaxespad=0)
        axes.tick_params(labelbottom=True)
    grid[-1, 0].set(xlabel="look-alike answered with the concept (%)", xlim=(-2, None))
    return figure


def controls(table: pd.DataFrame) -> plt.Figure:
    """Transfer and specificity of each method's first variant beside what its controls reach."""
    chosen = list(_first_variants(table[table["family"] != "reference"]))[::-1]
    figure, columns = plt.subplots(1, 2, figsize=(PAGE, 0.19 * len(chosen) + 0.9), sharey=True)
    for axes, metric in zip(columns, ("transfer", "specificity"), strict=True):
        for i, control in enumerate(("", *CONTROLS)):
            found = [(y, rows[rows["control"] == control]) for y, rows in enumerate(chosen)]
            points = [(100 * rows[metric].iloc[0], y) for y, rows in found if len(rows)]
            if points:
                x, y = zip(*points, strict=True)
                fill = colour(i) if not control else "none"
                label = CONTROL_LABELS[control]
                axes.scatter(x, y, s=16, marker=marker(i), facecolors=fill, edgecolors=colour(i), label=label, zorder=3)
        axes.set_xlim(-2, 102)
    columns[0].set_yticks(range(len(chosen)), [f"{plain(r.iloc[0]['method'])}, {r.iloc[0]['tier']}" for r in chosen])
    columns[0].set_ylim(-0.6, len(chosen) - 0.4)
    columns[0].set_xlabel("transfer (%)")
    columns[1].set_xlabel("look-alike answered with the concept (%)")
    handles, labels = columns[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def sweeps(table: pd.DataFrame) -> plt.Figure:
    """Transfer (full) and specificity (dashed) against the number that a sweep changes; bars: deviation over seeds."""
    panels = list(table.groupby(["method", "parameter"], sort=False))
    n_columns = min(3, len(panels)) or 1
    n_rows = -(-len(panels) // n_columns) or 1
    size = (max(COLUMN, PAGE * n_columns / 3), 2.3 * n_rows + 0.3)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=size, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((method, parameter), rows) in zip(grid.flat, panels, strict=False):
        for i, (_, series) in enumerate(rows.groupby(["tier", "site", "series"], sort=False)):
            first = series.iloc[0]
            label = ", ".join(filter(None, (first["series"], first["tier"], first["site"])))
            for metric, style in {"transfer": "-", "specificity": "--"}.items():
                axes.errorbar(
                    series["value"],
                    100 * series[metric],
                    100 * series[f"{metric}_std"].fillna(0),
                    linestyle=style,
                    color=colour(i),
                    marker=marker(i),
                    markersize=3,
                    linewidth=0.9,
                    elinewidth=0.6,
                    label=label if metric == "transfer" else None,
                )
        values = sorted(set(rows["value"]))
        if values[0] > 0 and values[-1] / values[0] >= 8:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set(title=plain(method), xlabel=parameter, ylim=(-2, 102))
        axes.legend(fontsize=5.5, title="full: transfer, dashed: specificity", title_fontsize=5.5)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of images (%)")
    return figure


def forgetting(table: pd.DataFrame) -> plt.Figure:
    """What a network injected with one concept after another still answers right, step by step."""
    stepwise = table[table.groupby(VARIANT, sort=False)["step"].transform("nunique") > 1]
    panels = list(stepwise.groupby(VARIANT, sort=False))
    figure, columns = plt.subplots(
        1, len(panels) or 1, figsize=(max(COLUMN, 2.4 * len(panels)), 2.5), sharey=True, squeeze=False
    )
    for axes, (_, rows) in zip(columns[0], panels, strict=False):
        for i, (concept, line) in enumerate(rows.groupby("concept", sort=False)):
            spread = 100 * line["transfer_std"].fillna(0)
            look = {"color": colour(i), "marker": marker(i), "markersize": 3.5, "linewidth": 1}
            axes.errorbar(line["step"], 100 * line["transfer"], spread, label=f"class {concept}", **look)
        kept = rows.groupby("step")["preservation"].mean()
        axes.plot(kept.index, 100 * kept, color="0.5", linestyle="--", linewidth=1, label="own classes")
        steps = rows.drop_duplicates("step")
        axes.set_xticks(steps["step"], steps["stage"])
        axes.set(title=f"{_name(rows.iloc[0])}, {rows.iloc[0]['tier']}", xlabel="step", ylim=(-2, 102))
    columns[0, 0].set_ylabel("answered right (%)")
    handles, labels = columns[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _first_variants(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Rows of the first variant of each method, methods by tier."""
    methods = [rows for _, rows in table.groupby("method", sort=False)]
    methods = [next(iter(rows.groupby(VARIANT, sort=False)))[1] for rows in methods]
    yield from sorted(methods, key=lambda rows: tier_order(rows.iloc[0]["tier"]))


def _name(row: Any) -> str:
    """Method and variant in words."""
    return plain({"method": row.method, "variant": row.variant})


def _wrapped(name: str) -> str:
    """A method's name on at most two lines of a small panel."""
    words = plain(name).split()
    if len(plain(name)) <= 16 or len(words) == 1:
        return plain(name)
    cut = min(range(1, len(words)), key=lambda i: max(len(" ".join(words[:i])), len(" ".join(words[i:]))))
    return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])


FIGURES = {
    "pairs": Figure(pairs, "pairs"),
    "tradeoff": Figure(tradeoff, "pareto"),
    "curves": Figure(curves, "curve"),
    "controls": Figure(controls, "controls"),
    "sweeps": Figure(sweeps, "sweeps"),
    "forgetting": Figure(forgetting, "stages"),
}
