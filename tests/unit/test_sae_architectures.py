"""Inference classes: their equations, sparse and dense forms, normalization."""

import numpy as np
import pytest
import torch
from random_saes import random_sae

from saeflow.sae.architectures import ARCHITECTURES, Gated, JumpReLU, ReLU, TopK
from saeflow.sae.codes import Codes

D_IN, D_SAE, N = 6, 20, 50


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def saes():
    return {name: random_sae(name, D_IN, D_SAE) for name in ARCHITECTURES}


def by_hand(sae, x):
    """The paper's equation, one entry after another."""
    W, b = sae.W_enc.numpy(), sae.b_dec.numpy()
    z = np.zeros((len(x), sae.d_sae))
    for i, row in enumerate(x.numpy()):
        projected = (row - b) @ W
        for j in range(sae.d_sae):
            match sae:
                case ReLU() | TopK():
                    z[i, j] = max(projected[j] + sae.b_enc[j].item(), 0)
                case JumpReLU():
                    p = projected[j] + sae.b_enc[j].item()
                    z[i, j] = p if p > sae.threshold[j].item() else 0
                case Gated():
                    gate = projected[j] + sae.b_gate[j].item()
                    magnitude = projected[j] * np.exp(sae.r_mag[j].item()) + sae.b_mag[j].item()
                    z[i, j] = max(magnitude, 0) if gate > 0 else 0
        if isinstance(sae, TopK):
            z[i, np.argsort(z[i])[: -sae.k]] = 0
    return z


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encode_is_the_papers_equation(saes, draw, name):
    x = draw(N, D_IN)
    np.testing.assert_allclose(saes[name].encode(x), by_hand(saes[name], x), atol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sparse_codes_hold_exactly_the_dense_latents(saes, draw, name):
    sae, x = saes[name], draw(N, D_IN)
    whole, in_batches = sae.encode_sparse(x), sae.encode_sparse((x[:13], x[13:]), batch_size=7)
    for codes in (whole, in_batches):
        torch.testing.assert_close(codes.dense(), sae.encode(x), rtol=0, atol=1e-14)
        assert all(row.diff().min() > 0 for row in codes.indices.split(codes.active_per_row.tolist()) if len(row) > 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decode_from_codes_equals_decode_from_dense_latents(saes, draw, name):
    sae, x = saes[name], draw(N, D_IN)
    expected = sae.encode(x).numpy() @ sae.W_dec.numpy() + sae.b_dec.numpy()
    np.testing.assert_allclose(sae.decode(sae.encode_sparse(x)), expected, atol=1e-12)
    np.testing.assert_allclose(sae(x), expected, atol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_leading_axes_are_kept(saes, draw, name):
    x = draw(3, 4, D_IN)
    torch.testing.assert_close(saes[name](x), saes[name](x.reshape(12, D_IN)).reshape(3, 4, D_IN))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folded_normalization_gives_the_same_reconstruction_in_the_stores_units(saes, draw, name):
    sae, x, mean, scale = saes[name], draw(N, D_IN), draw(D_IN) * 10, 0.3
    folded, raw = sae.fold_normalization(mean, scale), x / scale + mean
    torch.testing.assert_close(folded(raw), sae(x) / scale + mean)
    torch.testing.assert_close(folded.encode(raw), sae.encode(x) / scale, atol=1e-12, rtol=0)
    assert folded.unit_norm_decoder


def test_topk_keeps_no_zeros_when_fewer_than_k_latents_are_positive(saes, draw):
    sae = saes["topk"].replace(b_enc=torch.full((D_SAE,), -2.0, dtype=torch.float64))
    codes = sae.encode_sparse(draw(N, D_IN))
    assert codes.active_per_row.max() <= 5
    assert codes.active_per_row.min() < 5
    assert (codes.values > 0).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_flows_to_the_activations_only(saes, draw, name):
    x = draw(N, D_IN).requires_grad_()
    saes[name](x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in saes[name].parameters())


def test_codes_of_no_active_latent(saes, draw):
    silent = saes["standard"].replace(b_enc=torch.full((D_SAE,), -1e3, dtype=torch.float64))
    codes = silent.encode_sparse(draw(4, D_IN))
    assert len(codes) == 4
    assert codes.active_per_row.tolist() == [0] * 4
    torch.testing.assert_close(silent.decode(codes), silent.b_dec.expand(4, -1))


def test_codes_slices_are_rows_and_csr_is_scipys(saes, draw):
    codes = saes["standard"].encode_sparse(draw(N, D_IN))
    dense = codes.dense()
    for rows in (slice(3, 9), slice(40, None), slice(5, 5), slice(-3, None), slice(9, 3)):
        torch.testing.assert_close(codes[rows].dense(), dense[rows])
    np.testing.assert_array_equal(codes.csr().toarray(), dense)
    np.testing.assert_array_equal(codes.firing_counts(), (dense > 0).sum(0))
    torch.testing.assert_close(Codes.concatenate([codes[:20], codes[20:]]).dense(), dense)
    with pytest.raises(ValueError, match="steps of 1"):
        codes[::2]


@pytest.mark.usefixtures("unchecked")
def test_a_misshapen_tensor_is_named(draw):
    with pytest.raises(ValueError, match=r"ReLU: b_enc has shape \[19\], expected \[d_sae\] = \[20\]"):
        ReLU(W_enc=draw(D_IN, D_SAE), W_dec=draw(D_SAE, D_IN), b_enc=draw(D_SAE - 1), b_dec=draw(D_IN))


def test_k_beyond_the_latents_is_refused(saes):
    with pytest.raises(ValueError, match="k is 21, expected 1 to d_sae 20"):
        saes["topk"].replace(k=21)
