"""Figures of inverse embeddings, each drawn from tables alone."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from saeflow.publish.style import PAGE, colour, marker

METHODS = {
    "random": "random text",
    "dataset": "data set",
    "soft_projected": "soft, projected",
    "gcg": "GCG",
    "epo": "EPO",
    "soft": "soft",
}
_SHADED = ("dataset", "gcg", "epo")
_CELLS = 16  # tokens in a row that can still be read


def selection(table: pd.DataFrame) -> plt.Figure:
    """Entropy and density of all latents, those that pass, and the map of clusters."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(PAGE, 2.4))
    alive = table[table["passes_fires"]]
    passing = alive["passes_entropy"] & alive["passes_density"]
    for axes, name in ((left, "entropy"), (middle, "density")):
        values = alive[name] if name == "entropy" else np.log10(alive[name])
        edges = np.histogram_bin_edges(values, 30)
        axes.stairs(np.histogram(values, edges)[0], edges, color="0.6", label="all that fire", fill=True)
        axes.stairs(np.histogram(values[passing], edges)[0], edges, color=colour(0), label="pass", linewidth=1.2)
        axes.set_xlabel("entropy / log N" if name == "entropy" else "log10 share of tokens")
        axes.set_ylabel("latents")
    left.legend()
    shown = table.dropna(subset=["activity_x"])
    noise = shown["cluster_activity"] < 0
    right.scatter(shown.loc[noise, "activity_x"], shown.loc[noise, "activity_y"], s=5, color="0.75", linewidths=0)
    labels = shown.loc[~noise, "cluster_activity"].astype(int)
    right.scatter(
        shown.loc[~noise, "activity_x"],
        shown.loc[~noise, "activity_y"],
        s=7,
        color=[colour(label) for label in labels],
        linewidths=0,
    )
    chosen = shown[shown["role"].notna()]
    right.scatter(
        chosen["activity_x"], chosen["activity_y"], s=26, facecolors="none", edgecolors="black", linewidths=0.7
    )
    right.set(xlabel="component 1", ylabel="component 2", title="clusters; circles were chosen")
    return figure


def ratios(table: pd.DataFrame) -> plt.Figure:
    """Ratio to the highest activation on the data set: a point per feature and method, a bar at the median. Soft
    prompts, which are no text, reach several times as high and have an axis of their own."""
    names = [name for name in METHODS if name in set(table["method"])]
    panels = [part for part in ([n for n in names if n != "soft"], [n for n in names if n == "soft"]) if part]
    figure, grid = plt.subplots(
        1, len(panels), figsize=(PAGE, 2.4), squeeze=False, width_ratios=[max(1.4, len(part)) for part in panels]
    )
    for axes, part in zip(grid[0], panels, strict=True):
        for place, name in enumerate(part):
            values = table.loc[table["method"] == name, "ratio"].dropna().to_numpy(float)
            spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
            own = {"color": colour(names.index(name))}
            axes.scatter(place + spread, np.sort(values), s=10, marker=marker(names.index(name)), linewidths=0.6, **own)
            if len(values):
                axes.hlines(np.median(values), place - 0.3, place + 0.3, linewidth=1.5, **own)
        axes.axhline(1, color="black", linewidth=0.6)
        axes.set_xticks(range(len(part)), [METHODS[name] for name in part])
        axes.set_xlim(-0.6, len(part) - 0.4)
        axes.grid(axis="x", visible=False)
    grid[0, 0].set(ylabel="activation / highest on text", title="a point per feature; bars are medians")
    return figure


def curves(table: pd.DataFrame) -> plt.Figure:
    """Best ratio so far against evaluations, by method: median over features, once all have begun, and quartiles."""
    figure, axes = plt.subplots(figsize=(PAGE / 2, 2.4))
    for index, (method, own) in enumerate(table.groupby("method", sort=True)):
        grid = np.unique(np.linspace(0, own["evaluations"].max(), 80).astype(int))
        rows = []
        for _, curve in own.groupby("feature"):
            at = np.searchsorted(curve["evaluations"].to_numpy(), grid, side="right") - 1
            rows.append(np.where(at >= 0, curve["ratio"].to_numpy()[np.maximum(at, 0)], np.nan))
        rows = np.array(rows)
        there = ~np.isnan(rows).any(0)
        low, middle, high = np.quantile(rows[:, there], [0.25, 0.5, 0.75], axis=0)
        axes.plot(grid[there], middle, color=colour(index), linewidth=1.2, label=METHODS.get(method, method))
        axes.fill_between(grid[there], low, high, color=colour(index), alpha=0.2, linewidth=0)
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set(xlabel="evaluations per feature", ylabel="activation / highest on text")
    axes.legend()
    return figure


def fronts(table: pd.DataFrame, texts: pd.DataFrame) -> plt.Figure:
    """Activation against cross-entropy: EPO's front of each feature, and GCG's text."""
    features = list(dict.fromkeys(table["feature"]))[:12]
    columns = min(4, len(features))
    rows = -(-len(features) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(PAGE, 1.5 * rows + 0.3), squeeze=False, sharex=True)
    for axes, feature in zip(grid.flat, features, strict=False):
        own = table[table["feature"] == feature]
        axes.plot(
            own["cross_entropy"], own["ratio"], color=colour(0), marker=".", markersize=3, linewidth=0.9, label="EPO"
        )
        for index, method in enumerate(("gcg", "dataset"), 1):
            one = texts[(texts["feature"] == feature) & (texts["method"] == method)]
            axes.scatter(
                one["cross_entropy"],
                one["ratio"],
                s=16,
                color=colour(index),
                marker=marker(index),
                label=METHODS[method],
                zorder=3,
            )
        axes.set_title(f"feature {feature}")
    for axes in list(grid.flat)[len(features) :]:
        axes.set_visible(False)
    for column in range(columns):
        lowest = grid[(len(features) - 1 - column) // columns, column]
        lowest.set_xlabel("cross-entropy (nats)")
        lowest.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("ratio")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def heatmaps(texts: pd.DataFrame) -> plt.Figure:
    """Texts of the data set, of GCG and of EPO for each feature: a cell per token, shaded by the feature's activation
    there, over the highest of the panel. Of a long text, the tokens up to the one where the feature is highest."""
    shown = texts[texts["method"].isin(_SHADED)]
    features = list(dict.fromkeys(shown["feature"]))[:8]
    length = min(_CELLS, max([1, *(len(tokens) for tokens in shown["tokens"])]))
    figure, panels = plt.subplots(
        max(1, len(features)), 1, figsize=(PAGE, 0.72 * max(1, len(features)) + 0.2), squeeze=False
    )
    for axes, feature in zip(panels[:, 0], features, strict=False):
        own = shown[shown["feature"] == feature].set_index("method")
        methods = [method for method in _SHADED if method in own.index]
        rows = [_up_to_highest(own.loc[method], length) for method in methods]
        values = np.full((len(rows), length), np.nan)
        for i, (_, profile) in enumerate(rows):
            values[i, : len(profile)] = np.maximum(profile, 0)
        highest = max(float(np.nanmax(values)), 1e-9)
        axes.imshow(values / highest, aspect="auto", cmap="Oranges", vmin=0, vmax=1)
        for i, row in enumerate(rows):
            for j, (token, value) in enumerate(zip(*row, strict=True)):
                dark = value / highest > 0.6
                said = _fitting(token, 100 // length)
                axes.text(j, i, said, ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
        axes.set_yticks(range(len(rows)), [METHODS[method] for method in methods])
        axes.set_xticks([])
        axes.set_title(f"feature {feature}", loc="left", pad=2)
        axes.grid(visible=False)
        axes.tick_params(length=0)
    return figure


def _up_to_highest(text: pd.Series, most: int) -> tuple[list[str], list[float]]:
    """So many tokens of a text at most, and the feature's activation at each."""
    last = max(most, int(np.argmax(text["profile"])) + 1)
    return list(text["tokens"][:last][-most:]), list(text["profile"][:last][-most:])


def _fitting(token: str, most: int) -> str:
    """A token as it fits its cell, without signs that matplotlib reads as formulas."""
    token = token.replace("\n", "↵")
    short = token if len(token) <= most else f"{token[: most - 1]}…"
    return short.replace("$", r"\$")


def explanations(table: pd.DataFrame) -> plt.Figure:
    """Scores of explanations on held-out text beside those to beat: a point per feature, a bar at the mean."""
    figure, panels = plt.subplots(1, 3, figsize=(PAGE, 2.2), sharey=True)
    kinds = {"": "rule", "top_token_": "top token", "random_": "random"}
    said = {"detection": "detection AUROC", "balanced_accuracy": "balanced accuracy", "fuzzing": "fuzzing AUROC"}
    for axes, (name, title) in zip(panels, said.items(), strict=True):
        for index, prefix in enumerate(kinds):
            values = table[f"{prefix}{name}"].dropna().to_numpy(float)
            spread = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
            axes.scatter(index + spread, np.sort(values), s=9, color=colour(index), marker=marker(index), linewidths=0)
            if len(values):
                axes.hlines(values.mean(), index - 0.3, index + 0.3, color=colour(index), linewidth=1.5)
        axes.axhline(0.5, color="black", linewidth=0.6)
        axes.set_xticks(range(len(kinds)), kinds.values())
        axes.set_title(title)
        axes.grid(axis="x", visible=False)
    return figure


def draw(name: str, tables: dict[str, pd.DataFrame]) -> plt.Figure:
    """The figure of a name, from the tables that it needs."""
    match name:
        case "selection":
            return selection(tables["selection"])
        case "ratios":
            return ratios(tables["texts"])
        case "curves":
            return curves(tables["curves"])
        case "fronts":
            return fronts(tables["fronts"], tables["texts"])
        case "heatmaps":
            return heatmaps(tables["texts"])
        case "explanations":
            return explanations(tables["explanations"])
    raise ValueError(f"no figure of inverse embeddings is called '{name}'")
