"""Choice of latents: what one pass collects, filters, clusters and their worth, cards, the latents chosen."""

import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from random_saes import random_sae
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score

from saeflow.activations import ActivationStore
from saeflow.inversion.selection import activity, choice, clustering, filters
from saeflow.sae import formats

SOURCE = ("document", "position", "context", "token")


@pytest.fixture
def sae():
    return random_sae("jumprelu", dtype=torch.float32)


@pytest.fixture
def store(tmp_path):
    """21 contexts of 10 rows, 2 documents in each."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(210, 6, generator=rng)
    row = torch.arange(210)
    source = torch.stack([row // 5, row % 5, row // 10, row % 7], dim=1)
    with ActivationStore.create(tmp_path / "s", d=6, chunk_rows=64, source_columns=SOURCE) as writer:
        writer.append(x, source)
    return ActivationStore.open(tmp_path / "s")


def reference(sae, store, prompts):
    z = sae.encode(store.rows(slice(None))).numpy()
    n = prompts.max() + 1
    return z, np.stack([z[prompts == i].max(0) for i in range(n)])


@pytest.mark.parametrize("rows", [7, 16384])
def test_one_pass_gives_what_dense_latents_give(sae, store, rows, monkeypatch):
    monkeypatch.setattr(activity, "_ROWS", rows)
    z, maxima = reference(sae, store, np.repeat(np.arange(42), 5))
    found = activity.collect(sae, store, prompt_tokens=5, most_prompts=1000)
    assert (int(found.n_tokens), int(found.n_prompts)) == (210, 42)
    assert np.array_equal(found.counts, (z > 0).sum(0))
    assert np.array_equal(found.prompts_active, (maxima > 0).sum(0))
    np.testing.assert_allclose(found.sums, z.sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.highest, z.max(0), rtol=1e-5)
    np.testing.assert_allclose(found.maxima.toarray(), maxima, rtol=1e-5)
    p = maxima / np.maximum(maxima.sum(0), 1e-30)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(0) / np.log(42)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-6)
    few = activity.collect(sae, store, prompt_tokens=5, most_prompts=14)
    np.testing.assert_allclose(few.maxima.toarray(), maxima[::3], rtol=1e-5)
    np.testing.assert_allclose(few.entropy, entropy, atol=1e-6)


def test_what_is_collected_is_kept_by_content(sae, store, tmp_path, monkeypatch):
    formats.save(sae, tmp_path / "sae")
    manifest, cache = tmp_path / "s" / "manifest.json", tmp_path / "cache"
    a = activity.collect_cached(tmp_path / "sae", sae, manifest, store, 5, 100, cache)
    bytes_of = {path.name: path.read_bytes() for path in cache.iterdir()}
    monkeypatch.setattr(activity, "collect", None)
    b = activity.collect_cached(tmp_path / "sae", sae, manifest, store, 5, 100, cache)
    for field in fields(a):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name))
    monkeypatch.undo()
    other = sae.replace(b_enc=sae.b_enc + 1)
    formats.save(other, tmp_path / "sae")
    activity.collect_cached(tmp_path / "sae", other, manifest, store, 5, 100, cache)
    assert len(list(cache.iterdir())) == 2
    assert all((cache / name).read_bytes() == content for name, content in bytes_of.items())


def made_up(entropy, density):
    n = len(entropy)
    none = (np.zeros(0), np.zeros(0, int), np.zeros(1, int))
    counts = (np.array(density) * 1000).astype(np.int64)
    ones = np.arange(1.0, n + 1)
    return activity.Activity(
        counts,
        ones,
        ones,
        counts,
        np.array(entropy),
        np.array(1000),
        np.array(10),
        *none,
    )


def test_filters_keep_bounds_and_say_what_failed():
    found = made_up([0.1, 0.2, 0.5, 0.9, 0.95, 0.5], [0.05, 0.05, 0.0, 0.1, 0.05, 0.2])
    assert filters.kept(found, filters.Filters()).tolist() == [1, 3]
    with pytest.raises(filters.NothingLeftError, match=r"2 of 6 latents pass all filters, 3 are needed .*fires 5"):
        filters.kept(found, filters.Filters(), at_least=3)


def blobs(n_clusters=4, size=20, d=60, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_clusters, d))
    labels = np.repeat(np.arange(n_clusters), size)
    return np.abs(centres[labels] + noise * rng.normal(size=(len(labels), d))), labels


def test_clusters_that_are_there_are_found_again_from_halves_of_the_data():
    vectors, labels = blobs()
    scales = np.random.default_rng(1).uniform(0.1, 10, (len(vectors), 1))
    found = clustering.cluster(csr_array(vectors * scales), clustering.ClusterSettings(), seed=0)
    assert adjusted_rand_score(labels, found.labels) > 0.95
    assert found.stability > 0.9
    assert found.silhouette > 0.5
    assert found.map.shape == (80, 2)
    again = clustering.cluster(csr_array(vectors * scales), clustering.ClusterSettings(), seed=0)
    assert np.array_equal(found.labels, again.labels)
    assert np.array_equal(found.map, again.map)


def test_noise_has_no_stable_clusters():
    found = clustering.cluster(np.random.default_rng(0).normal(size=(80, 60)), clustering.ClusterSettings(), seed=0)
    assert found.stability < 0.3
    assert found.noise_share > 0.3


def test_the_knee_is_where_a_curve_turns():
    assert clustering.knee(np.concatenate([np.linspace(0, 1, 91), np.linspace(1, 10, 11)[1:]])) == pytest.approx(1)


def test_umap_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    spec = clustering.ClusterSettings(method="umap_dbscan")
    with pytest.raises(clustering.MissingExtraError, match=r"'umap_dbscan' needs the package 'umap'.*\.\[umap\]"):
        clustering.cluster(blobs()[0], spec, seed=0)


def test_dbscan_reads_its_eps_from_the_knee(monkeypatch):
    # The embedding is UMAP's; all that follows runs here on points that are clusters already.
    points, labels = blobs(d=2, noise=0.02)
    monkeypatch.setattr(clustering, "_umap", lambda *_: points)
    found = clustering.cluster(points, clustering.ClusterSettings(method="umap_dbscan"), seed=0)
    assert found.eps == clustering.knee(found.distances)
    assert (np.diff(found.distances) >= 0).all()
    assert found.n_clusters >= len(set(labels)) - 1


def test_cards_say_what_a_cluster_shares():
    vectors, labels = blobs()
    found = clustering.cluster(vectors, clustering.ClusterSettings(), seed=0)
    about = made_up(np.full(80, 0.5), np.linspace(0.01, 0.09, 80))
    tokens = {i: [f"of{labels[i]}", f"own{i}"] for i in range(80)}
    cards = choice.cards(np.arange(80), found, about, tokens)
    assert [card.size for card in cards] == sorted((card.size for card in cards), reverse=True)
    for card in cards:
        assert card.medoid == card.members[0]
        assert card.tokens == [f"of{labels[card.medoid]}"]
        assert card.cosine > 0.7


@pytest.mark.parametrize("n", [8, 20, 200])
def test_chosen_latents_are_distinct_and_of_all_roles(n):
    vectors, _ = blobs(noise=0.6)
    found = clustering.cluster(vectors, clustering.ClusterSettings(), seed=0)
    about = made_up(np.linspace(0.2, 0.9, 80), np.linspace(0.01, 0.09, 80))
    chosen = choice.choose(np.arange(80), found, about, n)
    assert len({c.feature for c in chosen}) == len(chosen) == min(n, 80)
    roles = [c.role for c in chosen]
    assert roles.count("extreme") == min(n // 4, roles.count("extreme"))
    assert {"representative", "extreme", "boundary"} == set(roles)
    assert 79 in {c.feature for c in chosen}  # the highest activation
