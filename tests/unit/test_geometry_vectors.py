"""The causal inner product and concept vectors: identities, references, and a Gaussian toy whose truth is known."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from saeflow.geometry import hierarchy, published, verdict, whitening
from saeflow.geometry.concept_vectors import angles, concept_vector, ledoit_wolf_shrinkage, projections
from saeflow.geometry.concepts import Concepts, build
from saeflow.geometry.crossfit import crossfit_angles, median_angle
from saeflow.geometry.membership import auc, leave_one_child_out
from saeflow.geometry.resampling import interval
from saeflow.geometry.simplex import barycentric, simplices


def rng(seed=0):
    return np.random.default_rng(seed)


def unembedding(v=500, d=12, seed=0):
    """Correlated rows around a mean that is not 0."""
    draw = rng(seed)
    return (draw.normal(size=(v, d)) @ draw.normal(size=(d, d)) + 3 * draw.normal(size=d)).astype(np.float32)


def toy(n_parents=4, n_children=3, n_words=12) -> Concepts:
    groups = {
        f"p{p}": {f"c{c}": [f"w{p}x{c}x{i}" for i in range(n_words)] for c in range(n_children)}
        for p in range(n_parents)
    }
    words = [word for children in groups.values() for group in children.values() for word in group]
    return build(groups, {word: i for i, word in enumerate(words)}, seed=0)[0]


def gaussian(concepts: Concepts, d=64, parent=6.0, child=5.0, noise=1.0, background=400) -> np.ndarray:
    """g(y) = parent e_p + child e_c + noise N(0, I), with all e orthonormal; then words of no concept."""
    n = len(concepts.table)
    g = noise * rng(1).normal(size=(n + background, d))
    axes = np.eye(d)
    g[np.arange(n)] += parent * axes[concepts.parent] + child * axes[len(concepts.parents) + concepts.child]
    return g


def test_whitened_rows_have_unit_covariance():
    gamma = unembedding()
    g = whitening.fit(gamma, np.arange(20, 500)).unembeddings(gamma[20:])
    assert np.allclose(g.mean(0), 0, atol=1e-9)
    assert np.allclose(np.cov(g.T, bias=True), np.eye(12), atol=1e-9)


def test_blocks_do_not_change_the_moments(monkeypatch):
    gamma = unembedding()
    whole = whitening.moments(gamma, np.ones(500, bool))
    monkeypatch.setattr(whitening, "_BLOCK_BYTES", 8 * 12 * 7)
    for a, b in zip(whole, whitening.moments(gamma, np.arange(500)), strict=True):
        assert np.allclose(a, b, rtol=1e-12)
    assert np.allclose(whole[1], np.cov(gamma.astype(float).T, bias=True))


def test_each_side_has_its_own_causal_product():
    gamma, draw = unembedding(), rng(2)
    white = whitening.fit(gamma, np.arange(500))
    covariance = whitening.moments(gamma, np.arange(500))[1]
    a, b = draw.normal(size=(2, 12))
    assert white.residuals(a) @ white.residuals(b) == pytest.approx(whitening.residual_product(a, b, covariance))
    u, v = a + white.mean, b + white.mean
    g = white.unembeddings(np.stack([u, v]))
    assert g[0] @ g[1] == pytest.approx(whitening.unembedding_product(a, b, covariance))
    assert np.allclose(white.to_residual(white.residuals(a)), a)


def test_logits_are_dot_products_of_whitened_vectors_up_to_a_constant():
    gamma = unembedding()
    white, h = whitening.fit(gamma, np.arange(500)), rng(3).normal(size=12)
    difference = gamma @ h - white.unembeddings(gamma) @ white.residuals(h)
    assert np.allclose(difference, h @ white.mean)


def test_effective_rank_is_the_number_of_equal_eigenvalues():
    gamma = rng().normal(size=(4000, 6))
    gamma -= gamma.mean(0)
    gamma = np.linalg.qr(gamma)[0] * np.array([1, 1, 1, 1, 1e-9, 1e-9])
    white = whitening.fit(gamma, np.arange(4000))
    assert white.effective_rank == pytest.approx(4, abs=1e-3)
    assert white.n_floored == 2


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"12 rows .* width 12"):
        whitening.fit(unembedding(), np.arange(12))


@pytest.mark.parametrize(("n", "d"), [(8, 40), (60, 12), (15, 15)])
def test_concept_vectors_agree_with_the_published_procedure(n, d):
    g = rng(n).normal(size=(n, d)) * np.linspace(0.5, 2, d) + 0.7
    shrinkage, mu = ledoit_wolf_shrinkage(g - g.mean(0))
    reference = LedoitWolf().fit(g)
    assert shrinkage == pytest.approx(reference.shrinkage_)
    assert mu == pytest.approx(np.trace(np.cov(g.T, bias=True)) / d)
    assert np.allclose(concept_vector(g), published.lda_direction(g), atol=1e-9)


def test_the_words_of_a_concept_project_to_one_on_average():
    g = rng().normal(size=(30, 10)) + 1
    assert projections(g, concept_vector(g)).mean() == pytest.approx(1)


def test_concepts_without_spread_are_refused():
    with pytest.raises(ValueError, match="do not differ"):
        concept_vector(np.ones((4, 3)))
    with pytest.raises(ValueError, match="three words"):
        concept_vector(np.ones((1, 3)))


def test_the_gaussian_toy_has_the_directions_that_it_was_made_of():
    concepts = toy(n_words=2000)
    g = gaussian(concepts, d=16, noise=0.5, background=0)
    teacher = hierarchy.Teacher.fit(g, concepts)
    # With k children at b e_c, m is the parent's axis plus b / k of each child's, and C^-1 leaves it where it is. An
    # estimated C turns it by sqrt(d / n) radians: 3.5 degrees for a parent's 4,200 words, 6.1 for a child's 1,400.
    axes = np.eye(16)
    for p in range(4):
        truth = 6 * axes[p] + 5 / 3 * axes[4 + 3 * p : 7 + 3 * p].sum(0)
        assert teacher.parents[p] @ truth / np.linalg.norm(truth) ** 2 == pytest.approx(1, abs=0.02)
        assert angles(teacher.parents[[p]], truth[None])[0] < 5
    for c, p in enumerate(concepts.parent_of):
        truth = 5 * (axes[4 + c] - axes[4 + 3 * p : 7 + 3 * p].mean(0))
        assert angles(teacher.deltas[[c]], truth[None])[0] < 12
    # These two are orthogonal, whatever b is.
    assert median_angle(crossfit_angles(g, concepts, rng())) == pytest.approx(90, abs=1)


def test_the_crossfit_angle_of_noise_is_far_from_90():
    concepts = toy(n_parents=8, n_children=3, n_words=12)
    g = rng(4).normal(size=(len(concepts.table), 200))
    # |l_p|^2 / |l_c|^2 = 6 / 18 words: the cosine is -a / sqrt(a^2 + b^2) = -1/2.
    assert median_angle(crossfit_angles(g, concepts, rng())) == pytest.approx(120, abs=2)


def test_the_verdict_passes_on_a_hierarchy_and_fails_without_one():
    concepts = toy(n_parents=6, n_words=14)
    g = gaussian(concepts, d=64)
    own = {i: i for i in range(len(g))}
    table = verdict.verdict(hierarchy.measure(g, concepts, own, seed=0, n_resamples=50))
    assert verdict.passes(table), table
    assert set(table.loc[table["statistic"].str.startswith(("nested", "unit")), "verdict"]) == {"uninformative"}
    for control in (
        hierarchy.measure(hierarchy.shuffled_rows(g, 1), concepts, own, seed=0, n_resamples=20),
        hierarchy.measure(g, hierarchy.with_random_parents(concepts, 0), own, seed=0, n_resamples=20),
    ):
        assert not verdict.passes(verdict.verdict(control))


def test_the_older_angles_say_nothing():
    a, b = rng().normal(size=(2, 50, 7))
    assert np.allclose(published.unit_angles(a, b), 90 + angles(a, b) / 2)
    concepts = toy(n_parents=8)
    noise = rng(5).normal(size=(len(concepts.table), 100))
    pairs = [(noise[concepts.parent == p], noise[concepts.child == c]) for c, p in enumerate(concepts.parent_of)]
    parents, children = (np.stack([x.mean(0) for x in side]) for side in zip(*pairs, strict=True))
    assert np.median(published.nested_angles(parents, children)) == pytest.approx(90, abs=2)


def test_the_published_projections_are_one_one_and_zero_on_the_toy():
    concepts = toy(n_words=30)
    g = gaussian(concepts, noise=0.3)
    words, n = np.flatnonzero(concepts.parent == 1), len(concepts.table)
    found = published.projection_test(g, words, np.arange(n, len(g)), rng())
    assert np.allclose(found, (1, 1, 0), atol=0.05)


def test_auc_counts_pairs_and_halves_ties():
    inside, outside = np.array([3.0, 1.0]), np.array([0.0, 1.0, 2.0])
    assert auc(inside, outside) == pytest.approx((3 + 1.5) / 6)
    truth = np.array([1, 1, 0, 0, 0])
    assert auc(inside, outside) == pytest.approx(roc_auc_score(truth, np.concatenate([inside, outside])))
    assert np.isnan(auc(inside, outside[:0]))


def test_a_left_out_child_is_found_by_what_its_siblings_share():
    concepts = toy()
    n = len(concepts.table)
    shared = leave_one_child_out(gaussian(concepts)[:n], concepts)
    alone = leave_one_child_out(gaussian(concepts, parent=0.0)[:n], concepts)
    assert shared.min() > 0.95
    assert alone.mean() < 0.7


def test_vertices_are_told_apart_only_where_children_differ():
    vertices = rng().normal(size=(4, 9))
    assert np.allclose(barycentric(vertices, vertices), np.eye(4))
    concepts = toy(n_words=20)
    clear = simplices(gaussian(concepts)[: len(concepts.table)], concepts, rng())
    blurred = simplices(gaussian(concepts, child=0.0)[: len(concepts.table)], concepts, rng())
    assert {s.affine_rank for s in clear} == {s.affine_rank for s in blurred} == {2}
    assert all(s.accuracy > 0.9 and s.p_value < 0.01 for s in clear)
    assert np.mean([s.accuracy for s in blurred]) < 0.6
    assert np.mean([s.chance for s in blurred]) == pytest.approx(1 / 3, abs=0.03)


def test_intervals_resample_whole_parents():
    parents = np.repeat(np.arange(10), 5)
    values = parents.astype(float)
    value, low, high = interval(values, parents, np.mean, 2000, rng())
    # The mean of ten drawn parents: standard deviation sqrt(8.25 / 10), not sqrt(8.25 / 50).
    assert value == pytest.approx(4.5)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(8.25 / 10), rel=0.08)
