"""The figures of a model's geometry, each drawn from tables alone."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from saeflow.config.geometry import ARMS
from saeflow.publish.style import COLUMN, PAGE, colour, marker

Tables = Mapping[str, pd.DataFrame]
_OTHER = "0.75"
_SHARES = ("purity", "leak_mass", "child_purity")
_LABELS = {
    "purity": "purity (%)",
    "leak_mass": "leak mass (%)",
    "child_purity": "child purity (%)",
    "ev": "explained variance (%)",
    "ce_recovered": "cross-entropy recovered (%)",
    "steering_leak_median": "steering leak (median)",
    "steering_kl": "KL at a mass of 0.25 (nats)",
}


def plain(name: str) -> str:
    """The name of an arm or concept in words: `animal.n.01` and `teacher_k2` are identifiers."""
    return name.rpartition("/")[2].split(".n.")[0].replace("_", " ")


def polytopes_2d(tables: Tables) -> plt.Figure:
    """Words in the plane of a parent's vector and the offset of its largest child; a right angle at the parent."""
    points = tables["phase1_points"].query("view == 'plane'")
    parents = list(dict.fromkeys(points["parent"]))
    figure, grid = plt.subplots(1, len(parents), figsize=(PAGE, 2.3), squeeze=False, sharey=True)
    for axes, parent in zip(grid[0], parents, strict=True):
        rows = points[points["parent"] == parent]
        vertices = rows[rows["kind"] == "vertex"]
        child = vertices.iloc[-1]["child"]
        groups = {
            "other words": rows[rows["kind"] == "other word"],
            plain(parent): rows[rows["kind"].isin(["word", "held-out word"]) & (rows["child"] != child)],
            plain(child): rows[rows["kind"].isin(["word", "held-out word"]) & (rows["child"] == child)],
        }
        for shade, (label, group) in zip((_OTHER, colour(0), colour(1)), groups.items(), strict=True):
            held_out = group["kind"] == "held-out word"
            axes.scatter(group["x"][~held_out], group["y"][~held_out], s=6, color=shade, label=label, linewidths=0)
            axes.scatter(
                group["x"][held_out], group["y"][held_out], s=9, facecolors="none", edgecolors=shade, linewidths=0.7
            )
        corner, tip = vertices[["x", "y"]].to_numpy()
        axes.annotate("", corner, (0, 0), arrowprops={"arrowstyle": "->", "color": "black", "shrinkA": 0, "shrinkB": 0})
        axes.annotate("", tip, corner, arrowprops={"arrowstyle": "->", "color": "black", "shrinkA": 0, "shrinkB": 0})
        axes.set(xlabel="along the parent", aspect="equal")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), fontsize=6, handletextpad=0.1, borderaxespad=0)
    grid[0][0].set_ylabel("along the child's offset")
    return figure


def polytopes_3d(tables: Tables) -> plt.Figure:
    """Children of a parent as vertices, and their words, on the vertices' first three principal axes."""
    points = tables["phase1_points"].query("view == 'polytope'")
    parents = list(dict.fromkeys(points["parent"]))
    n_columns = min(2, len(parents))
    n_rows = -(-len(parents) // n_columns)
    figure = plt.figure(figsize=(PAGE, 3.1 * n_rows))
    for i, parent in enumerate(parents):
        axes = figure.add_subplot(n_rows, n_columns, i + 1, projection="3d")
        rows = points[points["parent"] == parent]
        vertices = rows[rows["kind"] == "vertex"]
        places = vertices[["x", "y", "z"]].to_numpy()
        for a in range(len(places)):
            for b in range(a):
                axes.plot(*np.stack([places[a], places[b]]).T, color="0.4", linewidth=0.6)
        for j, child in enumerate(vertices["child"]):
            own = rows[(rows["child"] == child) & rows["kind"].isin(["word", "held-out word"])]
            axes.scatter(*own[["x", "y", "z"]].to_numpy().T, s=5, color=colour(j), depthshade=False, linewidths=0)
            axes.scatter(
                *places[j],
                s=40,
                color=colour(j),
                marker=marker(j),
                edgecolors="black",
                linewidths=0.5,
                label=plain(child),
            )
        others = rows[rows["kind"] == "other word"]
        axes.scatter(*others[["x", "y", "z"]].to_numpy().T, s=2, color=_OTHER, depthshade=False, linewidths=0)
        axes.set_title(plain(parent), pad=0)
        axes.tick_params(labelsize=5, pad=-3)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=6, handletextpad=0.2)
        axes.set_box_aspect((1, 1, 1))
    return figure


def angles(tables: Tables) -> plt.Figure:
    """Crossfit angles of all children and splits, with both controls."""
    table = tables["phase1_angles"]
    figure, axes = plt.subplots(figsize=(COLUMN * 1.3, 2.3))
    edges = np.arange(60, 171, 3)
    for i, kind in enumerate(("crossfit", "random parent", "shuffled rows")):
        values = table.loc[table["kind"] == kind, "degrees"]
        median = table[table["kind"] == kind].groupby("split")["degrees"].median().median()
        label = f"{kind}: median {median:.1f}"
        style = ("-", "--", ":")[i]
        axes.hist(
            values, edges, histtype="step", color=colour(i), linestyle=style, label=label, density=True, linewidth=1.2
        )
    axes.axvspan(80, 100, color="0.93", zorder=0)
    axes.axvline(90, color="black", linewidth=0.8)
    axes.set(xlabel="angle between parent and child's offset (degrees)", ylabel="density", xlim=(60, 170))
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.28), borderaxespad=0)
    return figure


def membership(tables: Tables) -> plt.Figure:
    """Held-out membership of every concept: AUC against other concepts' words, and of left-out children."""
    table = tables["phase1_concepts"]
    children = table[table["level"] == "child"]
    figure, columns = plt.subplots(1, 3, figsize=(PAGE, 2.0), sharey=True)
    parts = (
        ("parents, held-out words", table[table["level"] == "parent"]["auc"], 0.9),
        ("children, held-out words", children["auc"], 0.9),
        ("children left out of their parent", children["auc_left_out"], 0.8),
    )
    for axes, (title, values, least) in zip(columns, parts, strict=True):
        ordered = np.sort(values.dropna())
        axes.plot(
            np.arange(1, len(ordered) + 1) / len(ordered),
            ordered,
            marker="o",
            markersize=2.5,
            linewidth=0.8,
            color=colour(0),
        )
        axes.axhline(least, color=colour(1), linewidth=0.9, linestyle="--", label=f"target of the mean, {least}")
        axes.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":", label="chance")
        axes.axhline(ordered.mean(), color=colour(0), linewidth=0.9, label=f"mean {ordered.mean():.2f}")
        axes.set(xlabel="share of concepts", title=title, ylim=(0, 1.03))
        axes.legend(loc="lower right", fontsize=6)
    columns[0].set_ylabel("AUC")
    return figure


def _ordered(arms: Sequence[str]) -> list[str]:
    known = [name for name in ARMS if name in set(arms)]
    return known + [name for name in dict.fromkeys(arms) if name not in known]


def _against_steps(table: pd.DataFrame, metrics: Sequence[str]) -> plt.Figure:
    arms = _ordered(table["arm"])
    figure, columns = plt.subplots(1, len(metrics), figsize=(PAGE, 2.9))
    for axes, metric in zip(np.atleast_1d(columns), metrics, strict=True):
        scale = 100 if metric in (*_SHARES, "ev", "ce_recovered") else 1
        for i, arm in enumerate(arms):
            by_step = scale * table[table["arm"] == arm].groupby("step")[metric].agg(["mean", "std"])
            if by_step["mean"].notna().any():
                style = ("-", "--")[i // 7 % 2]
                axes.errorbar(
                    by_step.index, by_step["mean"], by_step["std"], color=colour(i), marker=marker(i), linestyle=style,
                    markersize=3, linewidth=0.9, elinewidth=0.6, label=plain(arm),
                )  # fmt: skip
        steps = sorted(set(table["step"]))
        axes.set_xscale("log")
        axes.set_xticks(steps, list(map(str, steps)))
        axes.minorticks_off()
        axes.set(xlabel="training steps", title=_LABELS[metric])
    handles, labels = np.atleast_1d(columns)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6.5)
    return figure


def recovery(tables: Tables) -> plt.Figure:
    """Purity, leakage and child purity of every arm along the training; bars: standard deviation over seeds."""
    return _against_steps(tables["arms"], _SHARES)


def reconstruction(tables: Tables) -> plt.Figure:
    """Explained variance and recovered cross-entropy of every arm along the training."""
    return _against_steps(tables["arms"], ("ev", "ce_recovered"))


def steering(tables: Tables) -> plt.Figure:
    """How decoder rows steer, along the training."""
    return _against_steps(tables["arms"], ("steering_leak_median", "steering_kl"))


def dose_response(tables: Tables) -> plt.Figure:
    """Logit changes and KL against the dose, at each site, of parent vectors and of directions of equal norm."""
    table = tables["interventions"]
    sites = list(dict.fromkeys(table["site"]))
    panels = (
        ("target", "own words (logits)"),
        ("other", "other words, |change| (logits)"),
        ("sibling_kl", "sibling KL (nats)"),
    )
    figure, grid = plt.subplots(len(sites), 3, figsize=(PAGE, 1.9 * len(sites) + 0.4), squeeze=False)
    for number, (row, site) in enumerate(zip(grid, sites, strict=True)):
        for axes, (metric, label) in zip(row, panels, strict=True):
            for i, kind in enumerate(("parent", "random", "shuffled")):
                values = table[(table["site"] == site) & (table["kind"] == kind)].groupby("dose")[metric]
                low, middle, high = (values.quantile(q) for q in (0.25, 0.5, 0.75))
                axes.plot(
                    middle.index, middle, color=colour(i), marker=marker(i), markersize=3, linewidth=0.9, label=kind
                )
                axes.fill_between(middle.index, low, high, color=colour(i), alpha=0.15, linewidth=0)
            unit = "logits expected of own words" if site == "final layer" else "mean lengths of activations"
            axes.set(xlabel=f"dose ({unit})", title="" if number else label)
            if metric == "sibling_kl":
                axes.set_yscale("log")
        row[0].set_ylabel(site)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


FIGURES: dict[str, Callable[[Tables], plt.Figure]] = {
    "polytopes_2d": polytopes_2d,
    "polytopes_3d": polytopes_3d,
    "angles": angles,
    "membership": membership,
    "recovery": recovery,
    "reconstruction": reconstruction,
    "steering": steering,
    "dose_response": dose_response,
}
