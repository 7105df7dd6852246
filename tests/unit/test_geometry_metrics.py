"""Metrics of recovery, absorption and steering: hand-made cases whose values are known."""

import numpy as np
import pytest

from saeflow.geometry import steering
from saeflow.geometry.absorption import absorption, probe, splits
from saeflow.geometry.recovery import Active, child_matches, child_purity, drift, f1_scores, match, recovery, usage

# Concepts 0, 0, 0, 1, 1, none; latents of three parents.
LABELS = np.array([0, 0, 0, 1, 1, -1])
Z = np.array([[2, 0, 0], [2, 0, 0], [0, 0, 1], [0, 3, 0], [1, 0, 0], [0, 5, 0]], float)


def test_concepts_are_matched_to_the_latents_that_detect_them_best():
    scores = f1_scores((Z > 0).astype(float), LABELS, 2)
    assert scores == pytest.approx(np.array([[4 / 6, 0, 2 / 4], [2 / 5, 2 / 4, 0]]))
    assert match(scores).tolist() == [0, 1]
    # Where one latent is best for both, the pair with the larger sum wins.
    assert match(np.array([[0.9, 0.8], [0.9, 0.1]])).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"1 latents .* 2 concepts"):
        match(scores[:, :1])


def test_purity_and_leakage_of_a_case_made_by_hand():
    found = recovery(Z, LABELS, np.array([0, 1]))
    assert found.purity == pytest.approx([2 / 3, 1 / 2])
    assert found.recall == pytest.approx([2 / 3, 1 / 2])
    # Matched parents hold 2 + 2 + 3 + 1 on labelled rows, of which 1 lies on the other's.
    assert found.leak_mass == pytest.approx(1 / 8)
    assert found.leak_rate == pytest.approx(1 / 5)


def test_a_concept_without_contexts_counts_nowhere_and_a_silent_latent_is_not_pure():
    found = recovery(Z * [1, 1, 0], LABELS, np.array([2, 1, 0]))
    assert found.purity[0] == 0
    assert np.isnan(found.purity[2])


def test_child_purity_is_of_contexts_under_the_parent_alone():
    child_labels = np.array([0, 0, 1, 1, 2, -1])
    parent_of = np.array([0, 0, 1])
    codes = Active(
        parents=np.zeros((6, 1), int) + np.array([[0], [0], [0], [0], [1], [0]]),
        values=np.ones((6, 1)),
        children=np.array([[1], [1], [0], [1], [0], [0]]),
    )
    matched = np.array([0, 1])
    slots = child_matches(codes, child_labels, parent_of, matched, n_slots=2)
    assert slots.tolist() == [1, 0, 0]
    assert child_purity(codes, child_labels, parent_of, matched, slots) == pytest.approx([2 / 3, 1, 1])


def test_usage_is_the_perplexity_of_activity():
    found = usage(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], float))
    assert found == pytest.approx({"dead_share": 0.5, "used_parents": 2, "l0": 1})


def test_drift_is_one_less_the_mean_cosine():
    assert drift(np.eye(2), np.array([[2.0, 0], [3.0, 0]])) == pytest.approx(0.5)


def test_a_concept_is_split_where_a_second_latent_adds_to_its_f1():
    is_label = np.array([1, 1, 1, 1, 0, 0], bool)
    halves = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]], float)
    assert splits(halves, is_label).tolist() == [0, 1]
    whole = np.array([[1, 0], [1, 1], [1, 0], [1, 0], [0, 0], [0, 0]], float)
    assert splits(whole, is_label).tolist() == [0]


def test_absorption_by_the_definition_of_saebench():
    w = np.array([1.0, 0, 0])
    decoder = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [-1, 0, 0]], float)
    x = np.tile([2.0, 0, 0], (5, 1))
    z = np.array(
        [
            [2, 0, 0, 0],  # the main latent gives all
            [0, 3, 0, 0],  # another gives 1.8 of 2
            [1, 5 / 3, 0, 0],  # half each
            [1, 0.5, 0, 0],  # the other gives 0.3, too little
            [0, 0, 9, 0],  # nothing along the probe
        ],
        float,
    )
    fraction, full = absorption(x, z, decoder, w, np.array([0]))
    assert fraction == pytest.approx([0, 1, 0.5, 0, 0])
    assert full.tolist() == [False, True, False, False, False]


def test_a_probe_finds_the_direction_that_tells_labels_apart():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    is_label = x[:, 1] > 0.3
    found = probe(x, is_label, np.array([[0, 2.0, 0, 0], [0, -2.0, 0, 0]]))
    assert found.direction[1] > 0.95
    assert found.predicts.tolist() == [True, False]


def test_effects_are_means_over_words():
    change = np.array([4.0, 2.0, 1.0, -1.0, 9.0])
    own, others = np.array([1, 1, 0, 0, 0], bool), np.array([0, 0, 1, 1, 0], bool)
    found = steering.effect(change, own, others)
    assert found == pytest.approx((3, 1, 1))
    assert found.leak == pytest.approx(1 / 3)


def test_equal_changes_keep_the_ratios_of_words():
    base = np.random.default_rng(0).normal(size=(3, 6))
    words = np.array([1, 1, 1, 0, 0, 0], bool)
    assert steering.ratio_divergence(base, 2.0 * words, words) == pytest.approx(0, abs=1e-12)
    # Two words at even odds, one moved by log 3: KL of (3/4, 1/4) to (1/2, 1/2).
    two = np.array([1, 1, 0, 0, 0, 0], bool)
    change = np.log(3) * np.array([1, 0, 0, 0, 0, 0])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert steering.ratio_divergence(np.zeros((1, 6)), change, two) == pytest.approx(expected)


def test_the_dose_for_a_mass_of_a_quarter_has_a_closed_form():
    # One of V equal words: e^a / (e^a + V - 1) = 1/4 at a = log((V - 1) / 3); KL = a / 4 + log(V / (e^a + V - 1)).
    v = 31
    change = np.zeros(v)
    change[0] = 1
    dose, kl = steering.kl_at_mass(np.zeros((2, v)), change, change > 0)
    assert dose == pytest.approx(np.log(10), abs=2e-3)
    assert kl == pytest.approx(np.log(10) / 4 + np.log(31 / 40), abs=2e-3)
    assert np.isnan(steering.kl_at_mass(np.zeros((2, v)), -change, change > 0)[1])
    ((mass, other, divergence),) = steering.dose_response(
        np.zeros((2, v)), change, change > 0, np.arange(v) < 3, np.array([np.log(10)])
    )
    assert (mass, other, divergence) == pytest.approx((0.25, 0.25 + 2 / 40, kl), abs=2e-3)
