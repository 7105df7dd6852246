"""Clusters of latents: by the prompts in which they are active, and by where their decoder rows point.

Clusters of features are weak as a rule; what is published with them says how weak: how much two draws of the data agree
on them, how far apart they are, how many latents belong to none.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, sparray
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from saeflow import extras
from saeflow.reproduce import child_seed

Method = Literal["hdbscan", "umap_dbscan"]
NOISE = -1


class MissingExtraError(ImportError):
    """A method whose library is not installed; names the extra that has it."""


@dataclass(frozen=True)
class ClusterSettings:
    """How latents are clustered.

    Arguments:
        method: `hdbscan` on principal components of unit vectors (so on cosines), or `umap_dbscan`.
        components: principal components, at most.
        min_size: fewest latents of a cluster.
        neighbours: of UMAP, and of the curve of distances that DBSCAN's eps is read from.
        seeds: draws of half of the coordinates, over whose clusters stability is measured.
    """

    method: Method = "hdbscan"
    components: int = 32
    min_size: int = 5
    neighbours: int = 5
    seeds: int = 5


@dataclass(frozen=True)
class Clusters:
    """A clustering and how much it is worth.

    Arguments:
        labels: cluster of each latent, NOISE for none; 0 is the largest.  Shape [n].
        points: in the space that was clustered.  Shape [n, components].
        map: for a figure.  Shape [n, 2].
        stability: mean adjusted Rand index of the clusters of two halves of the coordinates; 1 is agreement, 0 chance.
        silhouette: mean over latents of clusters; None with fewer than two clusters.
        noise_share: latents of no cluster.
        distances: to the k-th neighbour, ascending; None but for DBSCAN.
        eps: DBSCAN's, at the knee of `distances`.
    """

    labels: Int[np.ndarray, " n"]
    points: Float[np.ndarray, "n components"]
    map: Float[np.ndarray, "n 2"]
    stability: float | None
    silhouette: float | None
    noise_share: float
    distances: Float[np.ndarray, " n"] | None = None
    eps: float | None = None

    @property
    def n_clusters(self) -> int:
        return int(self.labels.max(initial=NOISE)) + 1


def cluster(vectors: sparray | np.ndarray, spec: ClusterSettings, seed: int) -> Clusters:
    """Cluster latents by the cosine of their vectors.

    Arguments:
        vectors: a row per latent [n, d]: highest activations per prompt, or decoder rows.
        spec: see `ClusterSettings`.
        seed: root of the draws.
    Raises:
        MissingExtraError: `umap_dbscan` without umap-learn.
    """
    points, labels, distances, eps = _once(vectors, spec, child_seed(seed, "clusters"))
    halves = []
    for i in range(spec.seeds):
        own = child_seed(seed, "half", i)
        chosen = np.sort(np.random.default_rng(own).permutation(vectors.shape[1])[: max(2, vectors.shape[1] // 2)])
        halves.append(_once(_columns(vectors, chosen), spec, own)[1])
    agreement = [adjusted_rand_score(a, b) for i, a in enumerate(halves) for b in halves[:i]]
    inside = labels != NOISE
    several = len(np.unique(labels[inside])) > 1 and inside.sum() > len(np.unique(labels[inside]))
    flat = points if points.shape[1] == 2 else _components(points, 2, child_seed(seed, "map"))
    return Clusters(
        labels,
        points,
        np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))),
        float(np.mean(agreement)) if agreement else None,
        float(silhouette_score(points[inside], labels[inside])) if several else None,
        float(1 - inside.mean()),
        distances,
        eps,
    )


def knee(distances: Float[np.ndarray, " n"]) -> float:
    """The value of an ascending curve where it lies farthest below the chord between its ends."""
    n = len(distances)
    chord = np.linspace(distances[0], distances[-1], n)
    return float(distances[int((chord - distances).argmax())])


def _once(vectors, spec: ClusterSettings, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, float | None]:
    points = _components(vectors, spec.components, seed)
    if spec.method == "hdbscan":
        # At the end the components of unit vectors are made unit vectors again: distances of those are cosines.
        points = normalize(points)
        labels = HDBSCAN(min_cluster_size=min(spec.min_size, max(2, len(points))), copy=True).fit_predict(points)
        return points, _by_size(labels), None, None
    points = _umap(points, spec.neighbours, seed)
    near = NearestNeighbors(n_neighbors=min(spec.neighbours + 1, len(points))).fit(points)
    distances = np.sort(near.kneighbors(points)[0][:, -1])
    eps = max(knee(distances), 1e-9)
    labels = DBSCAN(eps=eps, min_samples=spec.min_size).fit_predict(points)
    return points, _by_size(labels), distances, eps


def _components(vectors, n: int, seed: int) -> np.ndarray:
    unit = normalize(csr_array(vectors) if isinstance(vectors, sparray) else np.asarray(vectors, np.float64))
    n = min(n, min(unit.shape) - 1)
    if n < 1:
        return np.zeros((unit.shape[0], 1))
    found = PCA(n, svd_solver="arpack", random_state=seed % 2**32).fit(unit)
    # A component's sign is arbitrary: the largest entry is made positive.
    signs = np.sign(found.components_[np.arange(n), np.abs(found.components_).argmax(1)])
    return np.asarray(found.transform(unit)) * signs


def _umap(points: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    try:
        from umap import UMAP
    except ImportError as error:
        said = f"inversion.clustering.method: 'umap_dbscan' {extras.missing('umap')}"
        raise MissingExtraError(f"{said}, or take 'hdbscan'") from error
    reducer = UMAP(n_components=2, n_neighbors=min(3 * neighbours, len(points) - 1), min_dist=0.0, metric="cosine")
    return reducer.set_params(random_state=seed % 2**32).fit_transform(points).astype(np.float64)


def _columns(vectors, chosen: np.ndarray):
    return vectors.tocsc()[:, chosen].tocsr() if isinstance(vectors, sparray) else vectors[:, chosen]


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Numbers of clusters in the order of their sizes, the largest first."""
    names, counts = np.unique(labels[labels != NOISE], return_counts=True)
    rank = {name: i for i, name in enumerate(names[np.argsort(-counts, kind="stable")])}
    return np.array([rank.get(label, NOISE) for label in labels], dtype=np.int64)
