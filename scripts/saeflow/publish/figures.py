"""The figures of a study, each drawn from tables alone."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from saeflow.publish.style import COLUMN, PAGE, colour, marker

QUALITY = {
    "explained_variance": "explained variance",
    "accuracy_change_pp": "accuracy change (pp)",
    "l0": "L0 (active latents)",
    "dead_share": "dead latents (share)",
}


def classifiers(table: pd.DataFrame) -> plt.Figure:
    """Test accuracy of every network: a point per seed, a bar at the mean."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.2))
    _points(axes, table.assign(accuracy=100 * table["test_accuracy"]), "architecture", "accuracy", "role")
    axes.set_ylabel("test accuracy (%)")
    return figure


def sae_quality(table: pd.DataFrame) -> plt.Figure:
    """Each SAE variant on each architecture, held-out split: four metrics, a point per seed."""
    metrics = [name for name in QUALITY if name in table]
    figure, rows = plt.subplots(len(metrics), 1, figsize=(PAGE, 1.45 * len(metrics) + 0.5), sharex=True)
    for axes, metric in zip(rows, metrics, strict=True):
        _points(axes, table, "architecture", metric, "variant")
        axes.set_ylabel(QUALITY[metric])
    rows[1].axhline(0, color="black", linewidth=0.6)
    handles, labels = rows[0].get_legend_handles_labels()
    for axes in rows:
        if legend := axes.get_legend():  # a single variant has none
            legend.remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def sae_training(table: pd.DataFrame) -> plt.Figure:
    """Explained variance and L0 of the training batches against steps; mean over seeds, band from least to most."""
    architectures = table["architecture"].unique()
    figure, rows = plt.subplots(2, len(architectures), figsize=(PAGE, 3.2), sharex=True, sharey="row", squeeze=False)
    for column, architecture in enumerate(architectures):
        for row, (metric, label) in enumerate({"explained_variance": "explained variance", "l0": "L0"}.items()):
            axes = rows[row, column]
            for index, (variant, curve) in enumerate(_of(table, architecture).groupby("variant", sort=False)):
                steps = curve.groupby("step")[metric].agg(["mean", "min", "max"])
                axes.plot(steps.index, steps["mean"], color=colour(index), linewidth=1, label=variant)
                axes.fill_between(steps.index, steps["min"], steps["max"], color=colour(index), alpha=0.2, linewidth=0)
            if column == 0:
                axes.set_ylabel(label)
        rows[0, column].set_title(architecture)
        rows[1, column].set_xlabel("step")
        rows[1, column].set_yscale("log")
        rows[1, column].yaxis.set_major_formatter(ScalarFormatter())
        rows[1, column].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        rows[1, column].yaxis.set_minor_formatter(NullFormatter())
    # Early batches of a random dictionary explain less than nothing; the interesting range is the rest.
    rows[0, 0].set_ylim(max(-0.2, rows[0, 0].get_ylim()[0]), 1.02)
    handles, labels = rows[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def feature_rates(table: pd.DataFrame) -> plt.Figure:
    """How often latents fire: share of latents by activation rate, dead ones in the leftmost bin."""
    architectures = table["architecture"].unique()
    figure, columns = plt.subplots(1, len(architectures), figsize=(PAGE, 1.9), sharey=True, squeeze=False)
    edges = np.linspace(-4, 0, 25)
    for axes, architecture in zip(columns[0], architectures, strict=True):
        for index, (variant, latents) in enumerate(_of(table, architecture).groupby("variant", sort=False)):
            rates = np.log10(latents["test_activation_rate"].clip(lower=1e-4))
            share = np.histogram(rates, edges)[0] / len(latents)
            axes.stairs(share, edges, color=colour(index), label=variant, linewidth=1)
        axes.set(title=architecture, xlabel="log10 activation rate")
    columns[0, 0].set_ylabel("share of latents")
    handles, labels = columns[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def hypotheses(table: pd.DataFrame) -> plt.Figure:
    """Held-out score of every latent's hypothesis beside the score of the same rule on shuffled images."""
    variants = table["variant"].unique()
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4))
    grid = np.linspace(0, 1, 201)
    alive = table[~table["dead"]]
    for index, variant in enumerate(variants):
        scores = np.sort(alive.loc[alive["variant"] == variant, "auroc"].dropna())
        axes.plot(
            grid,
            1 - np.searchsorted(scores, grid, side="left") / max(len(scores), 1),
            color=colour(index),
            label=variant,
        )
    null = np.sort(alive["auroc_null"].dropna())
    axes.plot(
        grid, 1 - np.searchsorted(null, grid) / max(len(null), 1), color="0.5", linestyle="--", label="shuffled images"
    )
    axes.set(
        xlabel="AUROC on held-out images", ylabel="share of live latents at or above", xlim=(0.3, 1), ylim=(0, 1.02)
    )
    axes.legend(loc="upper right")
    return figure


def _of(table: pd.DataFrame, architecture: str) -> pd.DataFrame:
    return table[table["architecture"] == architecture]


def _points(axes: plt.Axes, table: pd.DataFrame, x: str, y: str, series: str) -> None:
    """Points of single seeds with a bar at their mean, side by side within each x."""
    groups, names = list(table[x].unique()), list(table[series].unique())
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        rows = table[table[series] == name]
        centre = np.array([groups.index(value) for value in rows[x]]) + width * (index - (len(names) - 1) / 2)
        axes.scatter(
            centre,
            rows[y],
            s=12,
            color=colour(index),
            marker=marker(index),
            label=name,
            linewidths=0,
            alpha=0.8,
            zorder=3,
        )
        mean = rows.assign(centre=centre).groupby("centre")[y].mean()
        axes.hlines(
            mean, mean.index - 0.35 * width, mean.index + 0.35 * width, color=colour(index), linewidth=1.5, zorder=4
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="x", visible=False)
    if len(names) > 1:
        axes.legend()


FIGURES = {
    "classifiers": (classifiers, "classifiers"),
    "sae_quality": (sae_quality, "saes"),
    "sae_training": (sae_training, "training"),
    "feature_rates": (feature_rates, "features"),
    "hypotheses": (hypotheses, "features"),
}


def names() -> Sequence[str]:
    """Names of all figures, in the order of the report."""
    return tuple(FIGURES)
