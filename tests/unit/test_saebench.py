"""SAEs for SAEBench reconstruct as they did, with decoder rows of length 1 and the attributes that it reads."""

import pytest
import torch
from random_saes import random_sae

from saeflow.publish.saebench import BenchSAE
from saeflow.sae import formats

D_IN, D_SAE = 16, 48


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu", "gated"])
def test_it_reconstructs_what_the_sae_does_with_rows_of_length_one(architecture, tmp_path):
    sae = random_sae(architecture, D_IN, D_SAE, dtype=torch.float32)
    if architecture != "topk":  # whose choice depends on the rows' lengths
        lengths = torch.linspace(0.5, 3, D_SAE)
        sae = sae.replace(W_dec=sae.W_dec * lengths[:, None])
    formats.save(sae, tmp_path / "sae", {"context_size": 64})
    bench = BenchSAE.load(tmp_path / "sae", model_name="pythia-70m-deduped", hook_layer=3)
    x = torch.randn(5, 7, D_IN, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bench(x), sae(x), rtol=0, atol=2e-5)
    torch.testing.assert_close(bench.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert ((bench.encode(x) > 0) == (sae.encode(x) > 0)).float().mean() > 0.999
    assert bench(x.bfloat16()).dtype == torch.bfloat16


def test_it_has_what_saebench_reads():
    bench = BenchSAE(random_sae("gated", D_IN, D_SAE, dtype=torch.float32), model_name="gpt2-small", hook_layer=2)
    assert bench.W_enc.shape == (D_IN, D_SAE)
    assert bench.W_dec.shape == (D_SAE, D_IN)
    assert bench.b_enc.shape == (D_SAE,)
    assert bench.b_dec.shape == (D_IN,)
    assert (bench.cfg.hook_name, bench.cfg.d_sae) == ("blocks.2.hook_resid_post", D_SAE)
    assert bench.device == torch.device("cpu")
    assert bench.dtype == torch.float32


def test_top_k_keeps_its_choice_where_rows_have_one_length_already():
    sae = random_sae("topk", D_IN, D_SAE, dtype=torch.float32)
    x = torch.randn(64, D_IN)
    bench = BenchSAE(sae, model_name="m", hook_layer=0)
    assert ((bench.encode(x) > 0).sum(-1) <= sae.k).all()


def test_top_k_with_rows_of_other_lengths_is_refused():
    sae = random_sae("topk", D_IN, D_SAE, dtype=torch.float32)
    with pytest.raises(ValueError, match="lengths 2 to 2"):
        BenchSAE(sae.replace(W_dec=2 * sae.W_dec), model_name="m", hook_layer=0)


def test_a_row_of_zeros_is_refused():
    sae = random_sae("standard", D_IN, D_SAE, dtype=torch.float32)
    decoder = sae.W_dec.clone()
    decoder[3] = 0
    with pytest.raises(ValueError, match="decoder row 3 is zero"):
        BenchSAE(sae.replace(W_dec=decoder), model_name="m", hook_layer=0)
