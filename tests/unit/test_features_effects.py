"""Causal logit effects: closed forms of a linear network, loops over single rows of a nonlinear one."""

import pytest
import torch

from saeflow.features import effects
from saeflow.features.bank import Examples


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def setting():
    """Decoder rows, rows of x, where each of three latents fires (the last nowhere) and how strongly."""
    rows = torch.tensor([[0, 4, 2, 7], [5, 1, -1, -1], [-1, -1, -1, -1]])
    values = torch.where(rows >= 0, normal(3, 4, seed=3).abs() + 0.5, 0)
    strength = torch.tensor([1.5, 0.7, 0.0], dtype=torch.float64)
    return normal(3, 6), normal(12, 6, seed=1), Examples(rows, values), strength


def run(logits_from, setting, **kwargs):
    decoder, x, active, strength = setting
    return effects.logit_effects(logits_from, decoder, x, active, strength, **{"n_added": 12, "seed": 0} | kwargs)


def test_all_three_effects_of_a_linear_network_are_the_decoder_row_times_its_weights(setting):
    weights = normal(6, 5, seed=2)
    decoder, _, active, strength = setting
    found = run(lambda v: v @ weights, setting)
    torch.testing.assert_close(found.addition, strength[:, None] * decoder @ weights)
    torch.testing.assert_close(found.direct, found.addition)
    mean = active.values.sum(1) / active.present.sum(1).clamp(min=1)
    torch.testing.assert_close(found.ablation, -mean[:, None] * decoder @ weights)
    for pair, values in found.agreement().items():
        torch.testing.assert_close(values[:2], torch.ones(2), msg=pair)
        assert values[2].isnan()
    centered = found.addition - found.addition.mean(1, keepdim=True)
    torch.testing.assert_close(found.size, centered.std(1, correction=0))


@pytest.mark.parametrize("batch_rows", [1, 5, 1000])
def test_effects_of_a_relu_network_are_those_of_single_rows(setting, batch_rows):
    first, second = normal(6, 7, seed=4), normal(7, 5, seed=5)

    def logits_from(v):
        return torch.relu(v @ first) @ second

    decoder, x, active, strength = setting
    found = run(logits_from, setting, batch_rows=batch_rows)
    for i in range(2):
        pairs = [(r, z) for r, z in zip(active.rows[i].tolist(), active.values[i], strict=True) if r >= 0]
        before = torch.stack([logits_from(x[r]) for r, _ in pairs])
        after = torch.stack([logits_from(x[r] - z * decoder[i]) for r, z in pairs])
        torch.testing.assert_close(found.ablation[i], (after - before).mean(0))
        assert found.flips[i].item() == (after.argmax(1) != before.argmax(1)).double().mean().item()
        moved = logits_from(x + strength[i] * decoder[i]) - logits_from(x)
        torch.testing.assert_close(found.addition[i], moved.mean(0))
    jacobians = torch.stack([torch.autograd.functional.jacobian(logits_from, row) for row in x])
    torch.testing.assert_close(found.direct, strength[:, None] * decoder @ jacobians.mean(0).T)


def test_a_latent_that_never_fires_has_no_effect(setting):
    found = run(lambda v: v.tanh()[:, :4], setting)
    assert not found.ablation[2].any()
    assert not found.addition[2].any()
    assert found.flips[2].isnan()
    assert found.random_size[2] == 0


def test_an_sae_that_is_dead_all_through_is_analyzed(setting):
    decoder, x, active, strength = setting
    nothing = Examples(torch.full_like(active.rows, -1), torch.zeros_like(active.values))
    found = run(lambda v: v[:, :4], (decoder, x, nothing, 0 * strength))
    assert found.ablation.shape == (3, 4)
    assert not found.addition.any()


def test_the_random_direction_has_the_norm_of_what_is_added(setting):
    # The logits are |v + step|^2 - |v|^2 averaged over v and -v: the squared norm of the step, and 0.
    decoder, x, active, strength = setting
    both = torch.cat([x, -x])
    found = run(lambda v: torch.stack([(v**2).sum(1), 0 * v[:, 0]], 1), (decoder, both, active, strength), n_added=24)
    norms = (strength[:, None] * decoder).norm(dim=1)
    torch.testing.assert_close(found.random_size, norms**2 / 2)
    torch.testing.assert_close(found.size, found.random_size)


def test_mean_jacobian_is_that_of_autograd_in_any_batches():
    weights, x = normal(6, 5), normal(9, 6, seed=1)
    exact = torch.stack([torch.autograd.functional.jacobian(lambda v: torch.tanh(v @ weights), row).T for row in x])
    for batch in (2, 9):
        torch.testing.assert_close(effects.mean_jacobian(lambda v: torch.tanh(v @ weights), x, batch), exact.mean(0))


def test_correlation_is_pearson_s():
    a, b = normal(3, 40), normal(3, 40, seed=1)
    b[1] = 2.0
    found = effects.correlation(a, b)
    assert found[0].item() == pytest.approx(torch.corrcoef(torch.stack([a[0], b[0]]))[0, 1].item())
    assert found[1].isnan()
