"""Concept tests: AUROC against a reference, planted features are found, chance fails, texts are well-formed."""

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from saeflow.datasets import concept_texts
from saeflow.features import concept_tests

TEXTS = sorted((Path(__file__).parents[2] / "config" / "concepts" / "texts").glob("*.txt"))
NAMES = ("conversational", "emotions", "questions")
LABELS = np.repeat([0, 1, 2], 40)


def sparse_noise(d=300, density=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((len(LABELS), d)) * (rng.random((len(LABELS), d)) < density)


def dense_noise(d=16, seed=1):
    return np.random.default_rng(seed).normal(size=(len(LABELS), d))


def evaluate(features, dense=None, **changes):
    settings = {"n_splits": 3, "n_shuffles": 100, "top": 4, "seed": 5} | changes
    dense = dense_noise() if dense is None else dense
    return concept_tests.evaluate(csr_array(features), dense, LABELS, NAMES, **settings)


def test_the_auroc_is_that_of_scikit_learn_with_ties_and_constant_columns():
    scores = np.round(sparse_noise(d=20, density=0.5), 1)
    scores[:, 3] = 0
    positive = np.stack([LABELS == 0, LABELS == 2])
    found = concept_tests.aurocs(concept_tests.ranks(csr_array(scores)), positive)
    expected = [[roc_auc_score(row, column) for column in scores.T] for row in positive]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0, 3] == 0.5
    with pytest.raises(ValueError, match="one kind only"):
        concept_tests.aurocs(concept_tests.ranks(scores), np.ones((1, len(LABELS)), bool))


def test_each_split_trains_on_half_of_each_concept_and_another_seed_splits_otherwise():
    chosen = concept_tests.splits(LABELS, 3, seed=5)
    assert [[int((row & (c == LABELS)).sum()) for c in range(3)] for row in chosen] == [[20, 20, 20]] * 3
    assert len({row.tobytes() for row in chosen}) == 3
    assert (concept_tests.splits(LABELS, 4, seed=5)[:3] == chosen).all()
    assert (concept_tests.splits(LABELS, 3, seed=6) != chosen).any()


def test_a_planted_feature_is_found_and_is_selective():
    features = sparse_noise()
    features[:, 123] = (LABELS == 2) * (1 + np.random.default_rng(2).random(len(LABELS)))
    verdicts, rows = evaluate(features)
    assert [v.concept for v in verdicts] == list(NAMES)
    questions = verdicts[2]
    assert questions.passed
    assert questions.auroc == 1
    assert questions.auroc_std == 0
    assert questions.p_value == pytest.approx(1 / 101)
    first = next(row for row in rows if row["concept"] == "questions" and row["rank"] == 1)
    # Perfect for one of three equal concepts: 0 against each other one and against the rest together 0.25.
    assert (first["feature"], first["auroc"], first["selectivity"]) == (123, 1, 0.75)
    assert "questions: passed: its best feature has AUROC 1.00" in questions.sentence()
    assert [row["rank"] for row in rows] == [1, 2, 3, 4] * 3


def test_what_an_sae_with_random_weights_does_as_well_is_not_learnt():
    features, control = sparse_noise(), sparse_noise(seed=3)
    for scores, weight in ((features, 0.5), (control, 5)):
        scores[:, 7] = np.random.default_rng(4).random(len(LABELS)) + weight * (LABELS == 1)
    alone, beside = (evaluate(features, **more)[0][1] for more in ({}, {"control": csr_array(control)}))
    assert alone.passed
    assert alone.learnt is None
    assert beside.passed
    assert beside.learnt is False
    assert "passed, as random weights do" in beside.sentence()
    assert "random weights 1.00" in beside.sentence()
    assert evaluate(features, control=csr_array(sparse_noise(seed=3)))[0][1].learnt
    with pytest.raises(ValueError, match="60 rows of the control"):
        evaluate(features, control=csr_array(control[:60]))


def test_noise_fails_and_is_reported_so():
    passed = [v.passed for seed in range(6) for v in evaluate(sparse_noise(seed=seed), n_shuffles=60)[0]]
    assert sum(passed) <= 4  # 18 tests at 5 %: more has a probability of 0.2 %
    assert "FAILED" in next(v for v in evaluate(sparse_noise())[0] if not v.passed).sentence()


def test_the_null_is_what_the_best_of_many_features_reaches_by_chance():
    few, many = (evaluate(sparse_noise(d))[0][0].null_p95 for d in (5, 600))
    # On held-out sentences a choice among many features is no better than a choice among few.
    assert 0.5 < few < 0.7
    assert 0.5 < many < 0.7


def test_a_concept_that_is_linear_in_the_activations_is_seen_by_the_probe_and_not_by_one_coordinate():
    dense = dense_noise()
    direction = np.ones(16) / 4
    dense += 4 * (LABELS == 1)[:, None] * direction
    verdicts, _ = evaluate(sparse_noise(), dense)
    assert verdicts[1].probe_auroc > 0.95
    assert 0.6 < verdicts[1].dense_auroc < verdicts[1].probe_auroc


def test_a_coordinate_may_tell_a_concept_by_low_values():
    dense = dense_noise()
    dense[:, 4] -= 10 * (LABELS == 0)
    assert evaluate(sparse_noise(), dense)[0][0].dense_auroc == 1


def test_equal_seeds_give_equal_results_and_sparse_ones_those_of_dense_ones():
    features = sparse_noise()
    assert evaluate(features) == evaluate(features)
    np.testing.assert_array_equal(concept_tests.ranks(csr_array(features)), concept_tests.ranks(features))


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="119 rows of features, 120 of activations"):
        evaluate(sparse_noise()[:-1])
    dense = dense_noise()
    dense[3, 2] = np.nan
    with pytest.raises(ValueError, match="activations hold 1 values that are no number"):
        evaluate(sparse_noise(), dense)
    with pytest.raises(ValueError, match="expected each of 0 to 3"):
        concept_tests.evaluate(csr_array(sparse_noise()), dense_noise(), LABELS, (*NAMES, "formal"))


def test_ten_concepts_ship_each_with_forty_sentences_of_its_own():
    texts = concept_texts.read(TEXTS)
    assert texts.names == (
        *("commands", "conversational", "emotions", "formal", "numbers"),
        *("punctuation", "questions", "statements", "technical", "temporal"),
    )
    assert np.bincount(texts.labels).min() >= 40
    assert len(set(texts.sentences)) == len(texts.sentences)


def test_questions_ask_and_statements_and_commands_do_not():
    texts = concept_texts.read(TEXTS)
    by_name = {name: [] for name in texts.names}
    for sentence, concept in zip(texts.sentences, texts.labels, strict=True):
        by_name[texts.names[concept]].append(sentence)
    assert all(sentence.endswith("?") for sentence in by_name["questions"])
    assert not any("?" in sentence for name in ("statements", "commands", "numbers") for sentence in by_name[name])


def test_a_users_file_is_a_concept_by_its_name(tmp_path):
    own = tmp_path / "weather.txt"
    own.write_text("".join(f"It rains on day {i}.\n\n" for i in range(20)))
    texts = concept_texts.read([*TEXTS, own])
    assert texts.names[-1] == "weather"
    assert (texts.labels == len(texts.names) - 1).sum() == 20


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["One."] * 2, r"own\.txt, line 2: 'One\.' is in own\.txt, line 1, already"),
        (["One."], r"own\.txt: 1 sentences; a concept needs 20"),
        (
            [*(f"It is {i}." for i in range(20)), "Where does this tunnel end?"],
            r"'Where .*' is in own\.txt, line 21, already",
        ),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path, lines, said):
    own = tmp_path / "own.txt"
    own.write_text("\n".join(lines))
    with pytest.raises(concept_texts.ConceptError, match=said):
        concept_texts.read([own, *(path for path in TEXTS if "questions" in path.name)])


def test_one_concept_is_none_and_a_name_is_of_one_file(tmp_path):
    with pytest.raises(concept_texts.ConceptError, match="give two"):
        concept_texts.read(TEXTS[:1])
    with pytest.raises(concept_texts.ConceptError, match="commands is the name of two files"):
        concept_texts.read([TEXTS[0], tmp_path / TEXTS[0].name])
