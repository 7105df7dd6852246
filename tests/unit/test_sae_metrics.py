"""Reconstruction, sparsity and splice metrics against two-pass float64 and scikit-learn."""

import numpy as np
import pytest
import torch
from random_saes import random_sae
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, r2_score
from sklearn.metrics.pairwise import cosine_similarity

from saeflow.sae.metrics import Reconstruction, Sparsity, Splice, ce_recovered, evaluate, measure

N, D = 3000, 64


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def reconstruct(x, x_hat, batch=700):
    """Metrics of float32 rows, taken in batches of unlike size."""
    result = Reconstruction()
    for i in range(0, len(x), batch):
        result.update(torch.tensor(x[i : i + batch]), torch.tensor(x_hat[i : i + batch]))
    return result.metrics()


@pytest.mark.parametrize("mean_over_std", [0, 1, 3, 10, 1e4])
def test_explained_variance_equals_the_two_pass_value_at_any_mean(rng, mean_over_std):
    means = mean_over_std * rng.normal(size=D)
    x = (rng.normal(size=(N, D)) + means).astype(np.float32)
    x_hat = (x + 0.5 * rng.normal(size=(N, D))).astype(np.float32)
    metrics = reconstruct(x, x_hat)
    x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
    error, total = ((x - x_hat) ** 2).sum(), ((x - x.mean(0)) ** 2).sum()
    assert metrics["explained_variance"] == pytest.approx(1 - error / total, abs=1e-9)
    assert metrics["explained_variance"] == pytest.approx(0.75, abs=0.01)  # noise of variance 1/4 in data of variance 1
    assert metrics["explained_variance"] == pytest.approx(r2_score(x, x_hat, multioutput="variance_weighted"), abs=1e-9)
    assert metrics["fvu"] == pytest.approx(error / total, abs=1e-9)
    assert metrics["mse"] == pytest.approx(error / N, rel=1e-12)


def test_explained_variance_does_not_depend_on_the_batches(rng):
    x = (rng.normal(size=(N, D)) + 10).astype(np.float32)
    x_hat = (0.9 * x).astype(np.float32)
    values = [reconstruct(x, x_hat, batch)["explained_variance"] for batch in (3, 17, 700, N)]
    assert max(values) - min(values) < 1e-9


def test_legacy_forms_equal_their_definitions(rng):
    means = 3 * rng.normal(size=D)
    x = rng.normal(size=(N, D)) * rng.lognormal(size=(N, 1)) + means
    x_hat = x + 0.5 * rng.normal(size=(N, D)) + 0.2
    metrics = reconstruct(x, x_hat, batch=N)
    r, centered = x - x_hat, x - x.mean(0)
    legacy = {
        "explained_variance_legacy_mean_ratio": np.mean(1 - (r**2).sum(1) / (centered**2).sum(1)),
        "explained_variance_centered_residual": 1 - r.var(0).sum() / x.var(0).sum(),
        "r2_scalar_mean": 1 - (r**2).sum() / ((x - x.mean()) ** 2).sum(),
    }
    for name, value in legacy.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
        assert abs(metrics["explained_variance"] - value) > 1e-3, name


def test_cosine_equals_scikit_learns_and_a_zero_vector_counts_as_zero(rng):
    x, x_hat = rng.normal(size=(2, N, D))
    x_hat[:10] = 0
    assert reconstruct(x, x_hat)["cosine"] == pytest.approx(np.diag(cosine_similarity(x, x_hat)).mean(), abs=1e-12)


@pytest.mark.parametrize("shrinkage", [0.5, 1.0, 1.3])
def test_relative_reconstruction_bias_is_the_common_factor(rng, shrinkage):
    x = rng.normal(size=(N, D))
    assert reconstruct(x, shrinkage * x)["relative_reconstruction_bias"] == pytest.approx(shrinkage)


def test_a_reconstruction_of_nothing_has_bias_zero(rng):
    x = rng.normal(size=(N, D))
    assert reconstruct(x, 0 * x)["relative_reconstruction_bias"] == 0


def test_explained_variance_of_constant_or_no_activations_is_refused():
    with pytest.raises(ValueError, match="all 100 activation vectors are equal"):
        reconstruct(np.full((100, D), 0.1, np.float32), np.zeros((100, D), np.float32))
    with pytest.raises(ValueError, match="activation vectors hold values that are not finite"):
        reconstruct(np.full((100, D), np.nan, np.float32), np.zeros((100, D), np.float32))
    with pytest.raises(ValueError, match="no activation vectors"):
        Reconstruction().metrics()
    with pytest.raises(ValueError, match="no latents"):
        Sparsity().metrics()


def test_sparsity_counts_active_dead_and_dense_latents():
    z = torch.zeros(1000, 8)
    for latent, n_active in enumerate([0, 0, 1, 10, 11, 100, 101, 1000]):
        z[:n_active, latent] = 1.5
    sparsity = Sparsity()
    for batch in z.split(300):
        sparsity.update(batch)
    assert sparsity.metrics() == {
        "l0": 1223 / 1000,
        "dead_share": 2 / 8,
        "dense_share_10": 2 / 8,
        "dense_share_1": 4 / 8,
    }
    edges, counts = sparsity.histogram(per_decade=1, decades=3)
    # dead | 0.001 | 0.01 and 0.011 | 0.1, 0.101 and 1
    assert edges.tolist() == [-float("inf"), -3, -2, -1]
    assert counts.tolist() == [2, 1, 2, 3]
    _, coarse = sparsity.histogram(per_decade=1, decades=2)
    assert coarse.tolist() == [2, 3, 3]


def test_splice_equals_scikit_learn_and_scipy(rng):
    clean, spliced = torch.tensor(rng.normal(size=(2, N, 10))).float()
    labels = torch.tensor(rng.integers(10, size=N))
    splice = Splice()
    for i in range(0, N, 700):
        splice.update(clean[i : i + 700], spliced[i : i + 700], labels[i : i + 700])
    metrics = splice.metrics()
    before, after = clean.argmax(1), spliced.argmax(1)
    p, q = clean.double().softmax(1), spliced.double().softmax(1)
    assert metrics["accuracy_clean"] == pytest.approx(accuracy_score(labels, before))
    assert metrics["accuracy_spliced"] == pytest.approx(accuracy_score(labels, after))
    change = accuracy_score(labels, after) - accuracy_score(labels, before)
    assert metrics["accuracy_change_pp"] == pytest.approx(100 * change)
    assert metrics["agreement"] == pytest.approx(accuracy_score(before, after))
    assert metrics["splice_kl"] == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-9)


def test_a_class_that_the_model_rules_out_adds_nothing_to_the_kl():
    logits = torch.tensor([[0.0, 1.0, -float("inf")]])
    splice = Splice()
    splice.update(logits, logits)
    assert splice.metrics() == {"agreement": 1.0, "splice_kl": 0.0}


def test_labels_for_some_batches_only_are_refused():
    splice = Splice()
    splice.update(torch.eye(3), torch.eye(3), torch.arange(3))
    splice.update(torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match="3 of 6 rows have labels"):
        splice.metrics()


def test_ce_recovered_is_one_for_no_loss_and_zero_for_the_loss_of_ablation():
    assert ce_recovered(2.0, 2.0, 8.0) == 1
    assert ce_recovered(2.0, 8.0, 8.0) == 0
    assert ce_recovered(2.0, 3.5, 8.0) == 0.75
    with pytest.raises(ValueError, match="ablated cross-entropy 2 is not above the clean 2"):
        ce_recovered(2.0, 2.5, 2.0)


def test_evaluate_equals_the_metrics_of_dense_latents(rng):
    sae = random_sae("jumprelu", dtype=torch.float32)
    x = torch.tensor(rng.normal(size=(N, sae.d_in))).float()
    head = torch.tensor(rng.normal(size=(sae.d_in, 5))).float()
    labels = torch.tensor(rng.integers(5, size=N))
    metrics = evaluate(sae, x.split(1000), logits=lambda a: a @ head, labels=labels, batch_size=300)
    z = sae.encode(x)
    assert metrics["n_rows"] == N
    assert metrics["l0"] == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert metrics["explained_variance"] == pytest.approx(
        r2_score(x.double(), sae.decode(z).double(), multioutput="variance_weighted"), rel=1e-6
    )
    spliced = (sae.decode(z) @ head).argmax(1)
    assert metrics["accuracy_spliced"] == pytest.approx(accuracy_score(labels, spliced))
    np.testing.assert_array_equal(measure(sae, x).sparsity.counts, (z > 0).sum(0))


def test_labels_must_go_with_the_rows_and_with_logits(rng):
    sae = random_sae("standard", dtype=torch.float32)
    x = torch.tensor(rng.normal(size=(20, sae.d_in))).float()
    for n_labels in (19, 21):
        with pytest.raises(ValueError, match=f"labels: {n_labels} for"):
            evaluate(sae, x, logits=lambda a: a, labels=torch.zeros(n_labels, dtype=torch.long))
    with pytest.raises(ValueError, match="given without `logits`"):
        evaluate(sae, x, labels=torch.zeros(20, dtype=torch.long))
