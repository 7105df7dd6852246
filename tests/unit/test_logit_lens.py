"""The logit lens against what adding a direction does to the logits, for each family that transformers can build."""

import logging
from contextlib import contextmanager

import language_families
import pytest
import torch

from saeflow.config.language import Hook
from saeflow.features import logit_lens
from saeflow.models import module_maps

PLACE = 7


def built(name):
    kind, own, *_ = (language_families.FAMILIES | language_families.OTHERS)[name]
    try:
        return language_families.build(kind, **own)
    except KeyError:
        pytest.skip(f"this version of transformers has no {kind}")


def tokens_of(model):
    n = model.get_input_embeddings().weight.shape[0]
    return torch.randint(3, n - 3, (1, PLACE + 1), generator=torch.Generator().manual_seed(3))


def of(value):
    """The vectors in what a module takes or gives."""
    return value if isinstance(value, torch.Tensor) else value[0]


@contextmanager
def passing(model, path, side, use):
    """Calls `use` with what a module takes or gives; what it returns, if anything, goes on."""
    module = model.get_submodule(path)
    if side == "output":
        handle = module.register_forward_hook(lambda _module, _args, out: use(out))
    else:
        handle = module.register_forward_pre_hook(lambda _module, args: use(args))
    yield
    handle.remove()


@torch.no_grad()
def effect(model, path, side="output", *, of_sum=None):
    """A direction, how far the last token's logits move when it is added at a module, per unit, and the state there.

    The direction is at right angles to the state, or to another one, so that the length by which that is divided stays.
    """
    found, tokens = [], tokens_of(model)

    def keep(value):
        found.append(of(value).view(PLACE + 1, -1)[PLACE].clone())

    with passing(model, *(of_sum or (path, side)), keep):
        model(tokens, use_cache=False)
    basis = torch.linalg.qr(torch.stack([found[0], torch.ones_like(found[0])], 1))[0]
    direction = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(0))
    direction -= basis @ (basis.T @ direction)

    def logits(step):
        def add(value):
            new = of(value).clone()
            new.view(1, PLACE + 1, -1)[0, PLACE] += step * direction  # OPT's blocks flatten them
            return new if isinstance(value, torch.Tensor) else type(value)([new, *value[1:]])

        with passing(model, path, side, add):
            return model(tokens, use_cache=False).logits[0, PLACE]

    step = 0.01 * float(found[0].square().mean().sqrt())
    return direction, (logits(step) - logits(-step)) / (2 * step), found[0]


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@pytest.mark.parametrize("name", language_families.FAMILIES)
def test_what_a_direction_does_after_the_last_block_is_what_the_lens_says(name):
    model, block = built(name), language_families.FAMILIES[name][2]
    direction, change, _ = effect(model, block)
    rows = logit_lens.unembedding(model, len(direction))
    assert correlation(rows @ direction, change) > 0.999
    assert torch.equal(logit_lens.unembedding(model, len(direction), Hook(module=block)), rows)
    assert logit_lens.unembedding(model, len(direction) + 1) is None


@pytest.mark.parametrize("name", language_families.OTHERS)
def test_models_that_do_more_than_add_and_normalise_have_no_lens_and_the_log_says_why(name, caplog):
    model, (*_, block, reason) = built(name), language_families.OTHERS[name]
    with caplog.at_level(logging.WARNING):
        assert logit_lens.unembedding(model, 32, Hook(module=block)) is None
    assert f"no logit lens at {block}: " in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("name", ["llama", "cohere", "granite", "minicpm3", "mpt", "opt, projected", "nemotron"])
def test_the_lens_gives_changes_of_logits_per_length_of_the_state(name):
    """Models that scale their logits, or what their unembedding reads, included."""
    model, block = built(name), language_families.FAMILIES[name][2]
    for module in model.modules():  # beside which the states of a random model are not large
        for epsilon in {"eps", "variance_epsilon"} & vars(module).keys():
            setattr(module, epsilon, 1e-12)
    direction, change, state = effect(model, block)
    if name in ("cohere", "mpt", "nemotron"):
        state = state - state.mean()
    length = 1 if name == "opt, projected" else state.square().mean().sqrt()
    said = logit_lens.unembedding(model, 32) @ direction / length
    torch.testing.assert_close(said - said.mean(), change - change.mean(), rtol=0.01, atol=float(change.std()) * 0.01)


@pytest.mark.parametrize(
    ("name", "path", "side", "of_sum"),
    [
        ("llama", "model.norm", "input", None),
        ("llama", "model.norm", "output", None),
        ("llama", "lm_head", "input", None),
        ("llama", "model.layers.1.mlp.down_proj", "output", ("model.norm", "input")),
        ("gptj", "transformer.h.1.attn.out_proj", "output", ("transformer.ln_f", "input")),
        ("granite", "model.layers.1.mlp", "output", ("model.norm", "input")),
        ("gemma2", "model.layers.1.post_feedforward_layernorm", "output", ("model.norm", "input")),
        (
            "opt, norms after the blocks",
            "model.decoder.layers.1.fc2",
            "output",
            ("model.decoder.layers.1.final_layer_norm", "input"),
        ),
    ],
)
def test_the_lens_is_of_the_place_where_the_directions_are(name, path, side, of_sum):
    """Nothing but the direct path is behind these."""
    model = built(name)
    direction, change, _ = effect(model, path, side, of_sum=of_sum)
    assert correlation(logit_lens.unembedding(model, 32, Hook(module=path, side=side)) @ direction, change) > 0.999


def test_earlier_places_of_the_stream_have_the_lens_of_its_end():
    model = built("granite")
    end = logit_lens.unembedding(model, 32)
    stream = ("model.layers.0", "model.layers.1.input_layernorm.input", "model.layers.1.post_attention_layernorm.input")
    for path in stream:
        hook = Hook(module=path.removesuffix(".input"), side="input" if path.endswith(".input") else "output")
        torch.testing.assert_close(logit_lens.unembedding(model, 32, hook), end)
    # What a block adds, and what the embedding gives, the model multiplies.
    for path, factor in (("model.layers.0.self_attn.o_proj", 0.3), ("model.embed_tokens", 1.0)):
        torch.testing.assert_close(logit_lens.unembedding(model, 32, Hook(module=path)), factor * end)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama", "model.layers.1.input_layernorm"),  # of the stream's width, all of them
        ("llama", "model.layers.1.self_attn.q_proj"),
        ("gemma2", "model.layers.1.self_attn.o_proj"),  # a norm of its own is behind it
        ("gemma2", "model.layers.1.mlp.down_proj"),
        ("opt, norms after the blocks", "model.decoder.layers.0"),
    ],
)
def test_outside_the_stream_there_is_no_lens(name, path):
    assert logit_lens.unembedding(built(name), 32, Hook(module=path)) is None


def test_weights_in_half_precision_have_the_lens_of_their_own_numbers():
    model = built("gemma2").bfloat16()
    rows = logit_lens.unembedding(model, 32)
    gain = 1 + model.model.norm.weight.float()
    torch.testing.assert_close(rows, model.lm_head.weight.float() * gain, rtol=0.005, atol=0)


class TimesVocabulary(torch.nn.Linear):
    """An unembedding that gives each token a scale of its own."""

    def forward(self, x):
        return super().forward(x) * torch.linspace(0.5, 2, self.out_features)


def test_an_unembedding_that_does_more_than_its_matrix_is_no_lens(caplog):
    model = built("llama")
    head = TimesVocabulary(32, 96, bias=False).requires_grad_(False)
    model.set_output_embeddings(head)
    with caplog.at_level(logging.WARNING):
        assert logit_lens.unembedding(model, 32) is None
    assert "more than multiply by its matrix" in caplog.text


def normalised(length, *, gain=1.0, bias=0.0, mean=False):
    """A module that divides by a length, which is a function of the vector."""

    class Normalised(torch.nn.Module):
        def forward(self, x):
            x = x - x.mean(-1, keepdim=True) if mean else x
            return gain * x / length(x) + bias

    return Normalised()


def root_mean_square(x):
    return x.square().mean(-1, keepdim=True).sqrt()


GAIN, BIAS = torch.linspace(-2, 3, 16), torch.linspace(1, 2, 16)
NORMS = {
    "LayerNorm": (normalised(root_mean_square, gain=GAIN, bias=BIAS, mean=True), GAIN, True),
    "RMSNorm": (normalised(root_mean_square, gain=GAIN), GAIN, False),
    "L2": (normalised(lambda x: x.norm(dim=-1, keepdim=True), gain=GAIN, bias=BIAS), GAIN / 4, False),
    "of a sign": (normalised(lambda x: -root_mean_square(x), mean=True), -torch.ones(16), True),
}
NO_NORMS = {
    "L1": normalised(lambda x: x.abs().mean(-1, keepdim=True)),
    "largest": normalised(lambda x: x.abs().amax(-1, keepdim=True)),
    "shrinking": normalised(lambda x: root_mean_square(x) ** 0.5),
    "in groups": torch.nn.GroupNorm(4, 16),
    "tanh": torch.nn.Tanh(),
    "GELU": torch.nn.GELU(),
    "ReLU": torch.nn.ReLU(),
    "of two": torch.nn.Bilinear(16, 16, 16),
    "after a matrix": torch.nn.Sequential(torch.nn.Linear(16, 16), NORMS["RMSNorm"][0]),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_are_measured(name):
    module, gain, centers = NORMS[name]
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    found = module_maps.measure(module, x, module(x))
    assert found.centers == centers
    torch.testing.assert_close(found.gain, gain)


def test_linear_modules_are_measured():
    module = torch.nn.Linear(16, 5).requires_grad_(False)
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    found = module_maps.measure(module, x, module(x))
    torch.testing.assert_close(found.matrix, module.weight)
    torch.testing.assert_close(found.pull_back(torch.eye(5)), module.weight)
    assert module_maps.measure(module, x, module(x) + x.mean()) is None  # more than the vector decided what it gave


@pytest.mark.parametrize("name", NO_NORMS)
@torch.no_grad()
def test_other_modules_are_no_normalisations(name):
    module = NO_NORMS[name]
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    assert module_maps.measure(module, x, module(x, x) if name == "of two" else module(x)) is None


def test_two_normalisations_have_no_lens(caplog):
    model = built("llama")
    model.model.norm = torch.nn.Sequential(model.model.norm, torch.nn.LayerNorm(32).requires_grad_(False))
    with caplog.at_level(logging.WARNING):
        assert logit_lens.unembedding(model, 32) is None
    assert "two normalisations lie between, model.norm.0 and model.norm.1" in caplog.text
