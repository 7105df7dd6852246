"""Products of sparse codes against dense ones, and selections against torch's own."""

import pytest
import torch

from saeflow.sae import kernels
from saeflow.sae.optimizer import remove_parallel


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def entries() -> tuple[kernels.Entries, torch.Tensor]:
    """Codes [30, 50], some rows and some latents empty, and the same dense."""
    dense = draw(30, 50) * (draw(30, 50, seed=1) > 1)
    dense[7] = 0
    dense[:, 11] = 0
    rows, latents = dense.nonzero(as_tuple=True)
    return kernels.from_rows(rows, latents, dense[rows, latents], n_rows=30, n_latents=50), dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "k"), [(512, 20), (4096, 32), (96, 3), (97, 3), (40, 40), (64, 50), (8, 1)])
def test_top_k_finds_what_torch_finds(d, k, dtype):
    x = draw(37, d, dtype=dtype)
    values, where = kernels.top_k(x, k)
    assert torch.equal(x.gather(1, where), values)
    assert torch.equal(values.sort(descending=True).values, x.topk(k, dim=1).values)


def test_top_k_orders_negative_values_zeros_and_infinities():
    x = torch.tensor([[-torch.inf, -2.0, -0.0, -1.0, torch.inf, 3.0]])
    assert kernels.top_k(x, 4)[0].sort().values.tolist() == [[-1.0, 0.0, 3.0, torch.inf]]


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_kth_largest_is_that_of_the_sorted_vector(k):
    x = draw(1000, dtype=torch.float32).relu()
    assert kernels.kth_largest(x, k) == x.sort(descending=True).values[k - 1]


@pytest.mark.parametrize("n", [96, 1 << 21])
def test_true_positions_are_those_of_nonzero(n):
    mask = draw(n, dtype=torch.float32) > 2
    assert torch.equal(kernels.true_positions(mask.view(8, -1)), mask.nonzero().squeeze(1))


def test_decoding_is_the_dense_product(entries):
    codes, dense = entries
    W = draw(50, 8)
    torch.testing.assert_close(kernels.decode(codes.offsets, codes.latents, codes.preactivations, W), dense @ W)


def test_products_are_entries_of_the_dense_product(entries):
    codes, _ = entries
    W, g = draw(50, 8), draw(30, 8, seed=2)
    ours = kernels.products(codes.offsets, codes.latents, g, W)
    torch.testing.assert_close(ours, (g @ W.T)[codes.rows, codes.latents])


def test_sums_over_the_rows_of_latents_are_the_transposed_product(entries):
    codes, dense = entries
    table = draw(30, 8, seed=3)
    order = kernels.by_latent(codes.rows, codes.latents, 50)
    values = codes.preactivations[order.order]
    whole = kernels.sum_rows(order, values, table, 0, 50)
    torch.testing.assert_close(whole, dense.T @ table)
    for start, stop in ((0, 13), (11, 12), (40, 50)):
        assert torch.equal(kernels.sum_rows(order, values, table, start, stop), whole[start:stop])


@pytest.mark.parametrize("n_latents", [300, 1 << 16])
@pytest.mark.parametrize("n", [100, 5000, 50_000])
def test_entries_are_sorted_by_latent_and_then_by_row(n, n_latents):
    rows = torch.arange(n) // 3
    latents = torch.randint(n_latents, (n,), generator=torch.Generator().manual_seed(0))
    order = kernels.by_latent(rows, latents, n_latents)
    expected = sorted(range(n), key=lambda i: (int(latents[i]), int(rows[i])))
    assert latents[order.order].tolist() == [int(latents[i]) for i in expected]
    assert order.rows.tolist() == [int(rows[i]) for i in expected]
    assert order.offsets.diff().tolist() == torch.bincount(latents, minlength=n_latents).tolist()


def test_kept_entries_stay_in_their_rows(entries):
    codes, dense = entries
    kept = codes.keep(codes.preactivations > 1)
    rebuilt = torch.zeros_like(dense)
    rebuilt[kept.rows, kept.latents] = kept.preactivations
    assert torch.equal(rebuilt, dense * (dense > 1))
    assert torch.equal(kept.offsets.diff(), (dense > 1).sum(1))


def test_what_is_left_of_a_gradient_is_orthogonal_to_its_row():
    W = torch.nn.functional.normalize(draw(20, 8), dim=1)
    g = draw(20, 8, seed=1)
    left = remove_parallel(g.clone(), W)
    torch.testing.assert_close((left * W).sum(1), torch.zeros(20, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(left, g - (g * W).sum(1, keepdim=True) * W)
