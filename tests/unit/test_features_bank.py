"""Feature bank: top examples, samples and label histograms against what sorting the whole matrix of codes gives."""

import numpy as np
import pytest
import torch
from random_saes import random_sae

from saeflow.activations import ActivationStore
from saeflow.features.bank import collect, uniform_hash
from saeflow.features.blocks import dense, encoded
from saeflow.sae.codes import Codes


@pytest.fixture
def z():
    """Codes with many equal values, one dead latent and one that fires on few rows."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-4, 5, (300, 7), generator=generator).clamp(min=0).double() / 2
    z[:, 3] = 0
    z[5:, 5] = 0
    z[1, 5] = 1.5
    return z


def in_batches(z, size):
    return [Codes.from_dense(part) for part in z.split(size)]


@pytest.mark.parametrize("size", [1, 7, 300])
def test_top_examples_are_those_of_a_full_sort_with_ties_in_row_order(z, size):
    top = collect(in_batches(z, size), top=10).top
    for latent in range(z.shape[1]):
        order = np.lexsort((np.arange(len(z)), -z[:, latent].numpy()))
        expected = [row for row in order[:10] if z[row, latent] > 0]
        assert top.rows[latent].tolist() == expected + [-1] * (10 - len(expected))
        assert top.values[latent, : len(expected)].tolist() == z[expected, latent].tolist()


def test_rates_means_and_label_histograms_are_those_of_the_dense_codes(z):
    labels = torch.randint(0, 3, (len(z),), generator=torch.Generator().manual_seed(1))
    bank = collect(in_batches(z, 64), top=4, labels=labels, n_labels=4)
    active = z > 0
    torch.testing.assert_close(bank.activation_rate, active.double().mean(0))
    torch.testing.assert_close(bank.mean_active[0], z[active[:, 0], 0].mean())
    torch.testing.assert_close(bank.max_active, z.max(0).values)
    assert bank.dead.tolist() == [False, False, False, True, False, False, False]
    assert bank.l0 == active.sum(1).double().mean()
    for label in range(4):
        assert bank.label_counts[:, label].tolist() == active[labels == label].sum(0).tolist()
        torch.testing.assert_close(bank.label_mass[:, label], z[labels == label].sum(0))
    torch.testing.assert_close(bank.label_shares.sum(1), (~bank.dead).double())
    assert bank.label_rows.tolist() == torch.bincount(labels, minlength=4).tolist()


def test_the_bank_does_not_depend_on_the_batches(z):
    one, many = (collect(in_batches(z, size), top=5, sample=6, seed=3) for size in (300, 11))
    for name in ("top", "sample"):
        assert torch.equal(getattr(one, name).rows, getattr(many, name).rows)
        assert torch.equal(getattr(one, name).values, getattr(many, name).values)


def test_a_sample_holds_firing_rows_once_and_begins_with_the_smaller_sample(z):
    small, large = (collect(in_batches(z, 50), top=1, sample=k, seed=0).sample for k in (4, 20))
    assert torch.equal(large.first(4).rows, small.rows)
    for latent in range(z.shape[1]):
        rows = large.rows[latent][large.present[latent]]
        assert len(set(rows.tolist())) == len(rows) == min(20, int((z[:, latent] > 0).sum()))
        assert torch.equal(z[rows, latent], large.values[latent][large.present[latent]])


def test_sorted_examples_descend_with_the_absent_ones_last(z):
    sample = collect(in_batches(z, 50), top=1, sample=12).sample.by_value()
    assert (sample.values.diff(dim=1) <= 0).all()
    assert not (sample.present[:, 1:] & ~sample.present[:, :-1]).any()


def test_uniform_hash_is_splitmix64():
    # First outputs of the published generator from state 0 (Vigna's splitmix64.c); row 0 of seed s is its (s+1)-th.
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for seed, output in enumerate(outputs):
        assert uniform_hash(torch.zeros(1, dtype=torch.int64), seed).item() == (output >> 11) / 2**53


def test_uniform_hash_fills_the_unit_interval_evenly():
    draws = uniform_hash(torch.arange(100_000), seed=7)
    assert len(draws.unique()) == len(draws)
    counts = torch.histc(draws.float(), 50, 0, 1)
    # Chi-squared with 49 degrees of freedom exceeds 85.4 once in a thousand.
    assert ((counts - 2000) ** 2 / 2000).sum() < 85.4


def test_a_store_s_bank_is_that_of_its_rows():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    sae = random_sae("topk", dtype=torch.float32)
    streamed = collect(encoded(sae, ActivationStore.from_array(x), batch_rows=64), top=8)
    whole = collect([sae.encode_sparse(x)], top=8)
    assert torch.equal(streamed.n_active, whole.n_active)
    assert torch.equal(streamed.top.rows, whole.top.rows)
    assert streamed.label_shares is None


def test_a_dense_block_is_that_part_of_the_codes(z):
    codes = Codes.from_dense(z)
    assert torch.equal(dense(codes, range(2, 6)), z[:, 2:6])


@pytest.mark.parametrize(
    ("labels", "n_labels", "message"),
    [
        (torch.zeros(299, dtype=torch.int64), None, "labels: 299 given"),
        (torch.zeros(301, dtype=torch.int64), None, "labels: 301 given for 300 rows"),
        (torch.full((300,), 3), 3, "labels: 3 to 3, expected 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(z, labels, n_labels, message):
    with pytest.raises(ValueError, match=message):
        collect(in_batches(z, 100), top=1, labels=labels, n_labels=n_labels)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="batches: none given"):
        collect([], top=1)
