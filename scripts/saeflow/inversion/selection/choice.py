"""Cards of clusters, and the latents that stand for a dictionary: typical ones, extremes, and those on boundaries."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import silhouette_samples

from saeflow.inversion.selection.activity import Activity
from saeflow.inversion.selection.clustering import NOISE, Clusters


@dataclass(frozen=True)
class Card:
    """A cluster in a few lines.

    Arguments:
        cluster: its number.
        size: latents.
        medoid: the latent nearest to all others.
        cosine: mean over pairs of latents, in the space that was clustered.
        silhouette: mean of its latents; None with one cluster.
        density: median share of tokens on which its latents fire.
        tokens: that most of its latents promote, the most frequent first.
        members: latents, the nearest to the medoid first.
    """

    cluster: int
    size: int
    medoid: int
    cosine: float
    silhouette: float | None
    density: float
    tokens: list[str]
    members: list[int]


def cards(
    latents: Int[np.ndarray, " n"],
    clusters: Clusters,
    activity: Activity,
    top_tokens: Mapping[int, Sequence[str]],
    n_tokens: int = 8,
) -> list[Card]:
    """A card per cluster, the largest first.

    Arguments:
        latents: that were clustered.
        top_tokens: that each latent promotes; latents may be missing.
        n_tokens: shown, at most.
    """
    silhouettes, found = _silhouettes(clusters), []
    for number in range(clusters.n_clusters):
        own = np.flatnonzero(clusters.labels == number)
        order = _by_distance(clusters.points[own])
        counts = Counter(token for i in own for token in dict.fromkeys(top_tokens.get(int(latents[i]), ())))
        common = sorted((token for token, n in counts.items() if n > 1), key=lambda token: (-counts[token], token))
        found.append(
            Card(
                number,
                len(own),
                int(latents[own[order[0]]]),
                _mean_cosine(clusters.points[own]),
                None if silhouettes is None else float(silhouettes[own].mean()),
                float(np.median(activity.density[latents[own]])),
                common[:n_tokens],
                [int(latents[own[i]]) for i in order],
            )
        )
    return found


@dataclass(frozen=True)
class Chosen:
    """A latent and why it was chosen.

    Arguments:
        feature: its number.
        role: `representative`, `extreme` or `boundary`.
        reason: in words.
        cluster: NOISE for none.
    """

    feature: int
    role: str
    reason: str
    cluster: int


def choose(latents: Int[np.ndarray, " n"], clusters: Clusters, activity: Activity, n: int) -> list[Chosen]:
    """Latents to ask about, each once: half typical, a quarter extreme, a quarter on boundaries.

    Typical ones are medoids, cluster by cluster from the largest, then the next nearest; without clusters, the latents
    nearest to the middle. Extremes have the highest or lowest density, entropy or activation. Boundary latents have the
    lowest silhouette, or, without two clusters, are farthest from the middle. A role that runs out is filled up with
    typical ones.

    Arguments:
        latents: that were clustered.
        n: how many; fewer if there are fewer.
    """
    n = min(n, len(latents))
    taken: dict[int, Chosen] = {}
    label = dict(zip(latents.tolist(), clusters.labels.tolist(), strict=True))

    def take(ordered: Sequence[tuple[int, str]], role: str, most: int) -> None:
        for feature, reason in ordered:
            if most <= 0:
                return
            if feature not in taken:
                taken[feature] = Chosen(feature, role, reason, label[feature])
                most -= 1

    typical = _typical(latents, clusters)
    n_extreme, n_boundary = n // 4, n // 4
    take(typical, "representative", n - n_extreme - n_boundary)
    take(_extremes(latents, activity), "extreme", n_extreme)
    take(_boundary(latents, clusters), "boundary", n_boundary)
    take(typical, "representative", n - len(taken))
    return sorted(taken.values(), key=lambda chosen: chosen.feature)


def _typical(latents: np.ndarray, clusters: Clusters) -> list[tuple[int, str]]:
    groups = []
    for number in range(clusters.n_clusters):
        own = np.flatnonzero(clusters.labels == number)
        groups.append([int(latents[own[i]]) for i in _by_distance(clusters.points[own])])
    found = []
    for rank in range(max((len(group) for group in groups), default=0)):
        words = "medoid of its cluster" if rank == 0 else f"number {rank + 1} of its cluster by nearness to the medoid"
        found += [(group[rank], words) for group in groups if rank < len(group)]
    rest = [(int(latents[i]), "near the middle of all latents") for i in _by_distance(clusters.points)]
    return found + rest


def _extremes(latents: np.ndarray, activity: Activity) -> list[tuple[int, str]]:
    scales = {
        "activation": activity.highest[latents],
        "density": activity.density[latents],
        "entropy": activity.entropy[latents],
    }
    found = []
    for rank in range(len(latents)):
        for name, values in scales.items():
            order = np.argsort(-values, kind="stable")
            found.append((int(latents[order[rank]]), f"{_ordinal(rank)}highest {name}"))
            if name != "activation":
                found.append((int(latents[order[-1 - rank]]), f"{_ordinal(rank)}lowest {name}"))
    return found


def _boundary(latents: np.ndarray, clusters: Clusters) -> list[tuple[int, str]]:
    silhouettes = _silhouettes(clusters)
    if silhouettes is None:
        return [(int(latents[i]), "far from the middle of all latents") for i in _by_distance(clusters.points)[::-1]]
    order = [i for i in np.argsort(silhouettes, kind="stable") if clusters.labels[i] != NOISE]
    return [(int(latents[i]), f"silhouette {silhouettes[i]:.2f}, between clusters") for i in order]


def _ordinal(rank: int) -> str:
    return "" if rank == 0 else f"number {rank + 1} by "


def _silhouettes(clusters: Clusters) -> Float[np.ndarray, " n"] | None:
    """Of each latent of a cluster, NaN for the others; None with fewer than two clusters."""
    if clusters.silhouette is None:
        return None
    inside = clusters.labels != NOISE
    found = np.full(len(clusters.labels), np.nan)
    found[inside] = silhouette_samples(clusters.points[inside], clusters.labels[inside])
    return found


def _by_distance(points: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    """Rows by the sum of their distances to all rows, the medoid first; to the mean, where there are very many."""
    if len(points) > 4096:
        return np.argsort(np.linalg.norm(points - points.mean(0), axis=1), kind="stable")
    squares = (points**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0))
    return np.argsort(distances.sum(1), kind="stable")


def _mean_cosine(points: Float[np.ndarray, "n d"]) -> float:
    norms = np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    unit, n = points / norms, len(points)
    return float(((unit.sum(0) ** 2).sum() - n) / (n * (n - 1))) if n > 1 else 1.0
