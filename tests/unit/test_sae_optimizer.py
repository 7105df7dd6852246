"""Adam with one second moment per element or per latent: against a naive implementation in float64."""

import pytest
import torch

from saeflow.config.saes import ReLU, TopK, Training
from saeflow.sae import optimizer
from saeflow.sae.gradients import Gradients, RowGradient
from saeflow.sae.optimizer import Adam

M, D_SAE, D_IN, STEPS = 2, 11, 6, 25
LEARNING_RATE = 0.03
MODES = ["element", "latent"]


def start() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_dec = torch.nn.functional.normalize(draw(M, D_SAE, D_IN), dim=2)
    return {"W_enc_T": draw(M, D_SAE, D_IN), "W_dec": W_dec, "b_enc": draw(M, D_SAE), "b_dec": draw(M, D_IN)}


def drawn_gradients(steps: int = STEPS) -> list[dict[str, torch.Tensor]]:
    """One per step; latents differ in scale by powers of ten, and some get none in most steps."""
    generator = torch.Generator().manual_seed(1)
    scale = 10.0 ** torch.randint(-3, 3, (M, D_SAE, 1), generator=generator)
    found = []
    for _ in range(steps):
        draws = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in start().items()}
        fired = torch.rand(M, D_SAE, 1, generator=generator) < torch.linspace(0.1, 1, D_SAE)[:, None]
        for name in ("W_enc_T", "W_dec"):
            draws[name] *= scale * fired
        found.append(draws)
    return found


def gradients_of(draws: dict[str, torch.Tensor]) -> Gradients:
    matrices = {name: RowGradient(draws[name].reshape(-1, D_IN).clone()) for name in ("W_dec", "W_enc_T")}
    vectors = {name: draws[name].clone() for name in ("b_enc", "b_dec")}
    return Gradients(matrices, vectors, draws["b_dec"][:, None], torch.ones(M, D_SAE, dtype=torch.bool))


def naive(mode: str, steps: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Adam as it is written in the papers, number by number."""
    p = start()
    for name in p:
        blocks = [(i,) for i in range(M)] if p[name].dim() == 2 else [(i, f) for i in range(M) for f in range(D_SAE)]
        for block in blocks:
            w = p[name][block].clone()
            first = torch.zeros_like(w)
            per_block = mode == "latent" and p[name].dim() == 3
            second = torch.zeros((), dtype=w.dtype) if per_block else torch.zeros_like(w)
            for t, draws in enumerate(steps, 1):
                g = draws[name][block]
                if name == "W_dec":
                    g = g - (g @ w) * w
                first = 0.9 * first + 0.1 * g
                second = 0.999 * second + 0.001 * (g.square().mean() if per_block else g.square())
                w = w - LEARNING_RATE * first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
                if name == "W_dec":
                    w = w / w.norm()
            p[name][block] = w
    return p


def trained(mode: str, steps: list[dict[str, torch.Tensor]]) -> Adam:
    adam = Adam(start(), mode)
    for draws in steps:
        adam.step(gradients_of(draws), LEARNING_RATE)
    return adam


@pytest.mark.parametrize("rows_per_block", [4, 100])
@pytest.mark.parametrize("mode", MODES)
def test_parameters_are_those_of_a_naive_implementation(mode, rows_per_block, monkeypatch):
    monkeypatch.setitem(optimizer._BLOCK_BYTES, "cpu", rows_per_block * D_IN * 8)
    steps = drawn_gradients()
    ours = trained(mode, steps).parameters
    for name, expected in naive(mode, steps).items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_one_second_moment_per_latent_changes_only_matrices():
    steps = drawn_gradients()
    element, latent = (trained(mode, steps).parameters for mode in MODES)
    for name in ("b_enc", "b_dec"):
        assert torch.equal(element[name], latent[name])
    for name in ("W_enc_T", "W_dec"):
        assert (element[name] - latent[name]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (TopK(architecture="topk", d_sae=8192, k=32), "latent"),
        (TopK(architecture="topk", d_sae=8191, k=32), "element"),
        (ReLU(architecture="relu", d_sae=8192, target_l0=32), "element"),
    ],
)
def test_large_saes_of_a_given_number_of_latents_keep_one_second_moment_per_latent(variant, expected):
    assert Training().second_moment_of(variant) == expected
    for chosen in MODES:
        assert Training(second_moment=chosen).second_moment_of(variant) == chosen


def test_one_second_moment_per_latent_turns_with_the_activations():
    """A rotation of the activations rotates what is learnt; element by element it would not."""
    rotation = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(2)).double()).Q
    steps = drawn_gradients(5)
    turned = [{**draws, **{n: draws[n] @ rotation for n in ("W_enc_T", "W_dec")}} for draws in steps]
    apart = {}
    for mode in MODES:
        adam = Adam({**start(), **{n: start()[n] @ rotation for n in ("W_enc_T", "W_dec")}}, mode)
        for draws in turned:
            adam.step(gradients_of(draws), LEARNING_RATE)
        plain = trained(mode, steps).parameters
        apart[mode] = max((adam.parameters[n] - plain[n] @ rotation).abs().max().item() for n in ("W_enc_T", "W_dec"))
    assert apart["latent"] < 1e-6
    assert apart["element"] > 1e-2


@pytest.mark.parametrize(("mode", "share"), [("element", 1.0), ("latent", 1 / D_IN)])
def test_numbers_that_are_kept(mode, share):
    adam = Adam(start(), mode)
    for name in ("W_enc_T", "W_dec"):
        assert adam.first[name].numel() == adam.parameters[name].numel()
        assert adam.second[name].numel() == pytest.approx(share * adam.parameters[name].numel())


@pytest.mark.parametrize("mode", MODES)
def test_reset_forgets_the_named_latents_alone(mode):
    adam = trained(mode, drawn_gradients())
    before = {name: (adam.first[name].clone(), adam.second[name].clone()) for name in ("W_dec", "b_enc")}
    latents = torch.tensor([2, 9])
    for name, moments in before.items():
        adam.reset(name, 1, latents)
        for moment, old in zip((adam.first[name], adam.second[name]), moments, strict=True):
            assert not moment[1, latents].any()
            expected = old.clone()
            expected[1, latents] = 0
            assert torch.equal(moment, expected)
            assert old[1, latents].all()


@pytest.mark.parametrize("mode", MODES)
def test_a_loaded_state_goes_on_with_the_same_bytes(mode):
    steps = drawn_gradients()
    whole = trained(mode, steps)
    part = trained(mode, steps[:10])
    resumed = Adam({name: tensor.clone() for name, tensor in part.parameters.items()}, mode)
    resumed.load_state({name: tensor.clone() for name, tensor in part.state().items()})
    for draws in steps[10:]:
        resumed.step(gradients_of(draws), LEARNING_RATE)
    for name, tensor in whole.parameters.items():
        assert torch.equal(resumed.parameters[name], tensor), name
