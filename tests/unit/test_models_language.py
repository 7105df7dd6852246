"""Language models: loaded, hooked, captured, trained."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx2
import huggingface_hub
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from saeflow.activations import ActivationStore, Part, PartWriter
from saeflow.config.language import EmbeddedModel, Hook
from saeflow.datasets import contexts, texts
from saeflow.datasets.inputs.texts import Texts, batches_of
from saeflow.models import causality, hook_points, language, language_files, language_training
from saeflow.models.capture import CaptureError, capture
from saeflow.models.networks.transformers import Transformers

TEXTS = ["the cat sat on the mat .", "who saw the dog ? it ran , the dog ran on", "a dog saw a cat .", "it sat ."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder per architecture."""
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_models.save(name, root / name) for name in tiny_models.ARCHITECTURES}


@pytest.fixture(scope="module")
def llama(folders):
    return language.load(folders["llama"], tiny_models.SETTINGS, "cpu")


@pytest.fixture(scope="module")
def tokens(folders):
    return language.load_tokenizer(folders["llama"], tiny_models.SETTINGS)


@pytest.fixture(scope="module")
def batch(tokens):
    """Contexts of 8 tokens."""
    return contexts.Contexts.concatenate(
        contexts.pack(enumerate(TEXTS), tokens.encode, start=tokens.start, context_size=8, n_tokens=None)
    )


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_blocks_and_modules_of_every_architecture_can_be_hooked(folders, batch, name):
    model = language.load(folders[name], tiny_models.SETTINGS, "cpu")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    _, blocks, inner, wide = tiny_models.ARCHITECTURES[name]
    hooks = {
        "first": Hook(module=f"{blocks}.0"),
        "before": Hook(module=f"{blocks}.1", side="input"),
        "inner": Hook(module=f"{blocks}.1.{inner}"),
    }
    assert Transformers(model, hooks).widths() == {"first": 16, "before": 16, "inner": wide}
    ids = torch.from_numpy(batch.tokens)
    rows = torch.arange(3, 11)
    values = hook_points.Recorder(model, hooks)(ids, rows)
    states = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(values["first"], states[1].flatten(0, 1)[rows])
    torch.testing.assert_close(values["before"], states[1].flatten(0, 1)[rows])
    # A replacement by itself changes nothing; another one does.
    text = torch.from_numpy(batch.is_text)
    clean = language.loss_sum(model, ids, text)
    for by, same in ((lambda v: v, True), (torch.zeros_like, False)):
        with hook_points.replaced(model, "before", hooks["before"], text, by):
            assert bool(language.loss_sum(model, ids, text)[0] == clean[0]) is same
    assert language.loss_sum(model, ids, text) == clean
    language.check(model, language.load_tokenizer(folders[name], tiny_models.SETTINGS), 24, name)
    with pytest.raises(language.LanguageModelError, match="context_size: 25 exceeds what m can read, 24 tokens"):
        language.check(model, language.load_tokenizer(folders[name], tiny_models.SETTINGS), 25, "m")


def test_nothing_behind_the_last_hook_point_is_computed(llama, batch):
    ran = []
    record = hook_points.Recorder(llama, {"a": Hook(module="model.layers.0")})
    record(torch.from_numpy(batch.tokens), torch.tensor([1]))  # once, the model runs whole, to show its layouts
    handle = llama.lm_head.register_forward_hook(lambda *_: ran.append(1))
    record(torch.from_numpy(batch.tokens), torch.tensor([1]))
    assert not ran
    handle.remove()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("model.layer.1", r"'model\.layer\.1': the model has no such module; nearest: .*model\.layers\.1"),
        ("model.layers.2", r"nearest: .*model\.layers\.1"),
        ("model.layers.1.mlp.fc2", r"nearest: .*model\.layers\.1\.mlp"),
        ("transformer.h.0", "nearest: "),
    ],
)
def test_an_unknown_hook_point_is_told_with_the_nearest(llama, path, said):
    with pytest.raises(hook_points.HookPointError, match=said):
        hook_points.Recorder(llama, {"a": Hook(module=path)})


def test_a_module_without_a_vector_per_token_is_no_hook_point(llama, batch):
    for module, said in (("model.rotary_emb", "expected a vector per token"), ("lm_head.weight", "no such module")):
        with pytest.raises(hook_points.HookPointError, match=said):
            hook_points.Recorder(llama, {"a": Hook(module=module)})(torch.from_numpy(batch.tokens), torch.tensor([1]))


class Odd(nn.Module):
    """A model whose modules give what a hook point may meet."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 4)
        names = "places rows rows_of_places named keyword pair counts flags routed shuffled twice"
        for name in names.split():
            self.add_module(name, nn.Identity())
        self.keyword = Keyword()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, tokens, use_cache=False):
        x = self.embed(tokens)
        n, length, d = x.shape
        x = self.places(x.transpose(0, 1)).transpose(0, 1)
        x = self.rows(x.reshape(-1, d)).view(n, length, d)
        x = self.rows_of_places(x.transpose(0, 1).reshape(-1, d)).view(length, n, d).transpose(0, 1)
        x = self.named({"x": x, "aux": 1})["x"]
        x = self.keyword(mask=torch.ones(n, length), hidden=x)
        x, _ = self.pair([x, None])
        self.counts(tokens)
        self.flags(tokens > 3)
        self.routed(x.reshape(-1, d)[::2])
        self.shuffled(x.reshape(-1, d)[x.reshape(-1, d)[:, 0].argsort()])
        return self.twice(self.twice(x) * 10)


class Keyword(nn.Module):
    def forward(self, hidden, mask):
        return hidden * mask[..., None]


@pytest.fixture(scope="module")
def odd():
    torch.manual_seed(0)
    return Odd()


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (3, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("module", ["places", "rows", "rows_of_places", "named", "keyword", "pair", "twice"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_token_has_its_own_vector_in_every_layout(odd, module, side, shape):
    tokens, hook = torch.randint(30, shape), Hook(module=module, side=side)
    x = odd.embed(tokens)
    found = hook_points.Recorder(odd, {"h": hook})(tokens, torch.arange(tokens.numel()))["h"]
    torch.testing.assert_close(found.view(*shape, 4), x)
    where = torch.rand(shape) < 0.5
    with hook_points.replaced(odd, "h", hook, where, lambda rows: rows + 1):
        for _ in range(2):  # in every pass, and in the first run of each
            torch.testing.assert_close(odd(tokens), (x + where[..., None]) * 10)
    torch.testing.assert_close(odd(tokens), x * 10)


def test_activations_can_be_read_while_others_are_replaced(odd):
    tokens, where = torch.randint(30, (2, 4)), torch.ones(2, 4, dtype=torch.bool)
    model, rows, named = copy.deepcopy(odd), Hook(module="rows"), Hook(module="named")
    with hook_points.replaced(model, "rows", rows, where, lambda x: x + 1):
        found = hook_points.Recorder(model, {"named": named})(tokens, torch.arange(8))["named"]
    torch.testing.assert_close(found, model.embed(tokens).flatten(0, 1) + 1)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("counts", "'counts': has numbers of type int64, expected a vector per token"),
        ("flags", "'flags': has numbers of type bool"),
        (
            "routed",
            r"'routed': has \[3, 4\], expected a vector per token, .*; a module that reads only the tokens routed to",
        ),
        ("shuffled", r"'shuffled': has \[6, 4\] for 2 contexts of 3 tokens, and its rows are not in the tokens' order"),
    ],
)
def test_what_is_no_vector_per_token_is_told_with_what_it_is(odd, module, said):
    with pytest.raises(hook_points.HookPointError, match=said):
        hook_points.Recorder(odd, {module: Hook(module=module)})(torch.randint(30, (2, 5)), torch.tensor([1]))


def test_a_module_that_runs_again_counts_once_and_says_so(odd, caplog):
    tokens = torch.randint(30, (2, 5))
    found = hook_points.Recorder(copy.deepcopy(odd), {"t": Hook(module="twice")})(tokens, torch.arange(10))["t"]
    torch.testing.assert_close(found, odd.embed(tokens).flatten(0, 1))
    assert "hook point 't': runs 2 times when the model reads a text; the first counts" in caplog.text


def write_store(path, model, batches, hooks, dtype="float32"):
    network = Transformers(model, hooks)
    widths = network.widths()
    writers = {
        (0, name): ActivationStore.create(path / name, widths[name], dtype, chunk_rows=5, source_columns=Texts.columns)
        for name in hooks
    }
    n = capture(network, batches_of(batches), writers)
    for writer in writers.values():
        writer.close()
    return n


def test_capture_writes_every_hook_point_of_every_text_token_with_its_provenance(tmp_path, llama, batch):
    hooks = {"x": Hook(module="model.layers.0"), "y": Hook(module="model.layers.1.mlp.gate_proj", side="input")}
    parts = [contexts.Contexts(*(getattr(batch, n)[i : i + 1] for n in contexts.COLUMNS)) for i in range(len(batch))]
    n = write_store(tmp_path, llama, parts, hooks)
    text = batch.is_text
    assert n == text.sum()
    states = llama(torch.from_numpy(batch.tokens), output_hidden_states=True).hidden_states
    for name in hooks:
        store = ActivationStore.open(tmp_path / name)
        assert store.source_columns == ("document", "position", "context", "token")
        document, position, context, token = store.source().numpy().T
        assert np.array_equal(document, batch.document[text])
        assert np.array_equal(position, batch.position[text])
        assert np.array_equal(token, batch.tokens[text])
        assert np.array_equal(context, np.nonzero(text)[0])
    x = ActivationStore.open(tmp_path / "x").rows(slice(None))
    torch.testing.assert_close(x, states[1][torch.from_numpy(text)])


@pytest.mark.parametrize("n_parts", [2, 3, 9])
def test_parts_of_several_jobs_are_those_of_one(tmp_path, llama, batch, n_parts):
    many = [batch] * 7
    contexts.write(tmp_path / "tokens.parquet", many, context_size=batch.tokens.shape[1], start=0)
    file, hooks = contexts.TokenFile.open(tmp_path / "tokens.parquet"), {"x": Hook(module="model.layers.1")}
    given = Texts({"train": file})
    assert np.array_equal(file.text_tokens(), np.tile(batch.is_text.sum(1), 7))

    def chunks(n):
        found = []
        for i in range(n):
            batches = given.batches("train", i, n, batch_size=3, chunk_rows=5)
            with PartWriter(
                tmp_path / f"{n}-{i}", d=16, dtype="float32", chunk_rows=5, source_columns=Texts.columns
            ) as writer:
                written = capture(Transformers(llama, hooks), batches, {(0, "x"): writer})
            assert written == Part.read(tmp_path / f"{n}-{i}").n_rows
            found.append(Part.read(tmp_path / f"{n}-{i}").digests)
        return {array: [digest for part in found for digest in part[array]] for array in ("activations", "source")}

    whole = chunks(1)
    assert len(whole["activations"]) == -(-7 * int(batch.is_text.sum()) // 5)
    assert chunks(n_parts) == whole


def test_a_run_of_contexts_is_read_in_batches_of_its_own_across_groups(tmp_path, batch):
    contexts.write(tmp_path / "t.parquet", [batch] * 3, context_size=batch.tokens.shape[1], start=0)
    file, n = contexts.TokenFile.open(tmp_path / "t.parquet"), len(batch)
    whole = np.tile(batch.tokens, (3, 1))
    for wanted in (range(3 * n), range(1, 2 * n + 1), range(n, n), range(2, 3)):
        found = list(file.batches(2, wanted))
        assert [len(part) for part in found] == [len(wanted[i : i + 2]) for i in range(0, len(wanted), 2)]
        assert np.array_equal(np.concatenate([whole[:0], *(part.tokens for part in found)]), whole[list(wanted)])


def test_batches_of_the_model_change_only_rounding(tmp_path, llama, batch):
    hooks = {"x": Hook(module="model.layers.1")}
    write_store(tmp_path / "1", llama, [batch], hooks)
    halves = [contexts.Contexts(*(getattr(batch, n)[s] for n in contexts.COLUMNS)) for s in (slice(2), slice(2, None))]
    write_store(tmp_path / "2", llama, halves, hooks)
    a, b = (ActivationStore.open(tmp_path / k / "x").rows(slice(None)) for k in "12")
    torch.testing.assert_close(a, b)


def test_an_activation_that_is_not_finite_is_told_with_its_place(tmp_path, folders, batch):
    model = language.load(folders["llama"], tiny_models.SETTINGS, "cpu")
    token = int(batch.tokens[batch.is_text][3])
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    said = rf"hook point 'x': the activation of document 0, position \d, context \d, token {token} is not finite"
    with pytest.raises(CaptureError, match=said):
        write_store(tmp_path, model, [batch], {"x": Hook(module="model.layers.0", side="input")})


@pytest.mark.parametrize("kind", tiny_models.FAMILIES)
def test_every_family_is_loaded_checked_and_hooked_with_what_transformers_chooses(tmp_path, batch, kind):
    sizes, block, flat = tiny_models.FAMILIES[kind]
    settings = tiny_models.SETTINGS | {"attention": None}
    model = language.load(tiny_models.build(kind, tmp_path, **sizes), settings, "cpu")
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(own, saved[name]) for name, own in model.state_dict().items() if name in saved)
    language.check(model, language.load_tokenizer(tmp_path, settings), 8, kind)
    ids, text = torch.from_numpy(batch.tokens), torch.from_numpy(batch.is_text)
    hooks = {name: Hook(module=name) for name in (block, flat) if name}
    rows = torch.arange(ids.numel())
    values = hook_points.Recorder(model, hooks)(ids, rows)
    # A context gives what it gives alone, so every row is that of its token.
    for i, context in enumerate(ids):
        alone = hook_points.Recorder(model, hooks)(context[None], torch.arange(len(context)))
        for name in hooks:
            torch.testing.assert_close(values[name].view(*ids.shape, -1)[i], alone[name])
    clean = language.loss_sum(model, ids, text)[0]
    for name, hook in hooks.items():
        # What a router gives first are logits, beside the choice that its experts read.
        cases = [(lambda v: v, True)] + [(lambda v: v.roll(1, -1), False)] * (values[name].shape[1] != 4)
        for by, same in cases:
            with hook_points.replaced(model, name, hook, text, by):
                assert torch.isclose(language.loss_sum(model, ids, text)[0], clean, rtol=1e-12).item() is same
        states, _ = hook_points.activations_at(model, name, hook, input_ids=ids)
        torch.testing.assert_close(states.flatten(0, 1), values[name])


XLNET = {"n_layer": 2, "n_head": 2, "d_model": 16, "d_inner": 32, "max_position_embeddings": ...}


@pytest.mark.parametrize(
    ("kind", "sizes", "dtype"),
    [
        ("bert", {}, "float32"),
        ("bert", {}, "bfloat16"),
        ("roberta", {"pad_token_id": 0}, "float32"),
        ("electra", {}, "float32"),
        ("xlnet", XLNET, "float32"),
    ],
)
def test_a_model_whose_predictions_depend_on_later_tokens_is_refused(tmp_path, kind, sizes, dtype):
    settings = tiny_models.SETTINGS | {"attention": None, "dtype": dtype}
    model = language.load(tiny_models.build(kind, tmp_path, **sizes), settings, "cpu")
    with pytest.raises(language.LanguageModelError, match=rf"models\.m: {type(model).__name__} is not causal"):
        language.check(model, language.load_tokenizer(tmp_path, settings), 8, "m")


def test_an_encoder_that_is_built_as_a_decoder_is_causal(tmp_path):
    model = language.load(tiny_models.build("bert", tmp_path, is_decoder=True), tiny_models.SETTINGS, "cpu")
    language.check(model, language.load_tokenizer(tmp_path, tiny_models.SETTINGS), 8, "m")


def test_a_model_without_numbers_has_sizes_but_no_causality(llama, tokens, caplog):
    with torch.device("meta"):
        outline = type(llama)(llama.config)
    language.check(outline.eval(), tokens, 8, "m")
    hooks = {"a": Hook(module="model.layers.1.mlp.gate_proj")}
    found = hook_points.Recorder(outline, hooks)(torch.zeros(2, 3, dtype=torch.long, device="meta"), torch.tensor([0]))
    assert found["a"].shape == (1, 32)  # sizes are known all the same
    assert "whether it is causal could not be measured" in caplog.text


def test_one_later_token_that_leaks_into_a_causal_model_is_seen(llama):
    ids = torch.arange(20)
    assert causality.looks_ahead(llama, ids) is False

    def leak(_module, _inputs, output):
        return output + 1e-2 * output.mean(1, keepdim=True)

    handle = llama.model.layers[0].mlp.register_forward_hook(leak)
    assert causality.looks_ahead(llama, ids) is True
    handle.remove()


def test_a_tokenizer_of_another_model_is_refused(llama, tokens):
    other = language_training.word_tokenizer([" ".join(f"w{i}" for i in range(50))], 100)
    with pytest.raises(language.LanguageModelError, match="the tokenizer has 52 tokens, the model embeds 20"):
        language.check(llama, other, 8, "m")


def test_a_tokenizer_of_far_fewer_tokens_than_the_model_embeds_is_told(llama, caplog):
    for words, told in ((16, False), (10, True)):
        caplog.clear()
        language.check(llama, language_training.word_tokenizer([" ".join(f"w{i}" for i in range(words))], 100), 8, "m")
        said = f"the tokenizer has {words + 2} tokens, the model embeds 20: is it the model's own?"
        assert (said in caplog.text) is told


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_the_model_does_not_embed_is_refused_where_a_text_has_it(tmp_path, folders, llama, special):
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    tokenizer = language.load_tokenizer(tmp_path, tiny_models.SETTINGS).tokenizer
    tokenizer.add_tokens([f"<|{i}|>" for i in range(20 - len(tokenizer))])
    tokenizer.add_tokens(["<image>"], special_tokens=special)
    tokenizer.save_pretrained(tmp_path)
    tokens = language.load_tokenizer(tmp_path, tiny_models.SETTINGS)
    language.check(llama, tokens, 8, "m")
    assert max(tokens.encode(["the cat <|0|>"])[0]) < 20
    with pytest.raises(
        language.LanguageModelError, match=r"the token '<image>' \(id 20\), but the model embeds the ids"
    ):
        tokens.encode(["the cat", "the <image> cat"])


def renamed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without(part):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def more(**tensors):
    return lambda weights: weights | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def edited(folder, change, **settings):
    """A folder with other weights and other keys of its configuration."""
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: t.contiguous() for name, t in change(weights).items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (renamed("_orig_mod."), {}, r"missing: lm_head\.weight.* and \d+ more; .*names begin with '_orig_mod\.'"),
        (renamed("module."), {}, r"names begin with 'module\.', as those of a model in a wrapper"),
        (without("lm_head"), {}, r"missing: lm_head\.weight\); config\.json and weights are of two models"),
        (without("embed_tokens"), {}, r"missing: model\.embed_tokens\.weight"),
        (without("layers.1.mlp"), {}, r"missing: model\.layers\.1\.mlp\.down_proj\.weight"),
        (lambda w: w, {"num_hidden_layers": 1}, r"not the model's: model\.layers\.1\.input_layernorm\.weight"),
        (lambda w: w, {"num_hidden_layers": 3}, r"missing: model\.layers\.2\.input_layernorm\.weight"),
        (lambda w: w, {"vocab_size": 24}, r"of another size: lm_head\.weight \(\[20, 16\] in the files, \[24, 16\] by"),
        (lambda w: w, {"model_type": "gpt_neox"}, "its weights are not those of GPTNeoXForCausalLM"),
        (lambda w: w, {"model_type": "qwen2"}, r"missing: model\.layers\.0\.self_attn\.k_proj\.bias"),
        (
            more(model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(4, 16)),
            {},
            r"not the model's: model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight",
        ),
        (
            lambda w: without("lm_head")(without("embed_tokens")(w)),
            {"tie_word_embeddings": True},
            r"missing: lm_head\.weight, model\.embed_tokens\.weight",
        ),
    ],
)
def test_weights_that_are_not_the_models_own_are_refused_by_name(tmp_path, folders, change, settings, said):
    folder = edited(shutil.copytree(folders["llama"], tmp_path / "m"), change, **settings)
    with pytest.raises(language.LanguageModelError, match=f"m: its weights are not those of .*{said}|{said}"):
        language.load(folder, tiny_models.SETTINGS, "cpu")


def of_kind(dtype):
    return lambda weights: {k: (t * 10).to(dtype) if "up_proj" in k else t for k, t in weights.items()}


def with_value(value):
    return lambda weights: {k: torch.full_like(t, value) if "1.mlp.up" in k else t for k, t in weights.items()}


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (of_kind(torch.int8), {}, r"are whole numbers: model\.layers\.0\.mlp\.up_proj\.weight, .*quantisation"),
        (of_kind(torch.uint8), {"quantization_config": {"quant_method": "none such"}}, "are whole numbers"),
        (of_kind(torch.bool), {}, "are whole numbers"),
        (of_kind(torch.complex64), {}, "are whole numbers"),
        (with_value(float("nan")), {}, r"no finite numbers in float32: model\.layers\.1\.mlp\.up_proj\.weight; set"),
        (with_value(float("-inf")), {}, "no finite numbers in float32"),
    ],
)
def test_weights_that_are_codes_or_no_numbers_are_refused(tmp_path, folders, change, settings, said):
    folder = edited(shutil.copytree(folders["llama"], tmp_path / "m"), change, **settings)
    with pytest.raises(language.LanguageModelError, match=f"m: weights .*{said}"):
        language.load(folder, tiny_models.SETTINGS, "cpu")


def test_weights_that_the_dtype_of_the_study_cannot_hold_are_refused(tmp_path, folders):
    folder = edited(shutil.copytree(folders["llama"], tmp_path / "m"), with_value(1e6))
    language.load(folder, tiny_models.SETTINGS | {"dtype": "bfloat16"}, "cpu")
    with pytest.raises(language.LanguageModelError, match="no finite numbers in float16"):
        language.load(folder, tiny_models.SETTINGS | {"dtype": "float16"}, "cpu")


def masks(name, n=2):
    """What files of older versions hold beside the weights."""
    found = {}
    for i in range(n):
        found |= {f"{name.format(i)}.bias": torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()}
        found |= {f"{name.format(i)}.masked_bias": torch.tensor(-1e9)}
    return found


@pytest.mark.parametrize(
    ("kind", "change", "settings"),
    [
        ("llama", without("lm_head"), {"tie_word_embeddings": True}),
        ("llama", without("embed_tokens"), {"tie_word_embeddings": True}),
        ("llama", more(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)), {}),
        ("gpt2", lambda w: {k.removeprefix("transformer."): v for k, v in w.items()} | masks("h.{}.attn"), {}),
        ("gpt_neox", lambda w: w | masks("gpt_neox.layers.{}.attention"), {}),
        (
            "gpt_neo",
            lambda w: {k.removeprefix("transformer."): v for k, v in w.items()} | masks("h.{}.attn.attention"),
            {},
        ),
        ("opt", lambda w: {k.removeprefix("model."): v for k, v in w.items()}, {}),
        ("bloom", lambda w: {k.removeprefix("transformer."): v for k, v in w.items()}, {}),
        ("deepseek_v3", more(model__layers__2__eh_proj__weight=torch.ones(4, 4)), {"num_nextn_predict_layers": 1}),
        ("qwen3_next", more(mtp__fc__weight=torch.ones(4, 4)), {}),
    ],
)
def test_weights_as_they_are_published_are_the_models_own(tmp_path, folders, kind, change, settings):
    if kind in folders:
        folder = shutil.copytree(folders[kind], tmp_path / "m")
    else:
        folder = tiny_models.build(kind, tmp_path / "m", **tiny_models.FAMILIES[kind][0])
    choice = tiny_models.SETTINGS | {"attention": None}
    own = language.load(folder, choice, "cpu").state_dict()
    again = language.load(edited(folder, change, **settings), choice, "cpu").state_dict()
    tied = settings.get("tie_word_embeddings")
    assert all(
        torch.equal(own[name], again[name]) for name in own if not (tied and ("lm_head" in name or "embed" in name))
    )
    assert not tied or torch.equal(again["lm_head.weight"], again["model.embed_tokens.weight"])


def test_what_a_model_sees_is_left_out_of_the_part_that_reads(tmp_path):
    text = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size_mlp": 32, "num_local_experts": 2}
    seen = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    seen |= {
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    }
    config = transformers.Llama4Config(text_config=text | {"pad_token_id": 0}, vision_config=seen)
    transformers.Llama4ForConditionalGeneration(config).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    model = language.load(tmp_path, tiny_models.SETTINGS | {"attention": None}, "cpu")
    assert any("vision" in name for name in saved)
    assert not any("vision" in name for name, _ in model.named_parameters())
    edited(tmp_path, more(vision_model__other__weight=torch.ones(2)))
    with pytest.raises(language.LanguageModelError, match=r"not the model's: vision_model\.other\.weight\)"):
        language.load(tmp_path, tiny_models.SETTINGS | {"attention": None}, "cpu")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 548105171\n"


def cut(path, by=64):
    path.write_bytes(path.read_bytes()[:-by])


def in_shards(folder):
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder / "s", max_shard_size="8KB")
    (folder / "model.safetensors").unlink()
    for path in (folder / "s").glob("model*"):
        path.rename(folder / path.name)
    return folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda f: (f / "model.safetensors").write_text(POINTER),
            r"model\.safetensors: is a pointer of Git LFS, not the file",
        ),
        (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json: is a pointer of Git LFS"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors: is empty"),
        (
            lambda f: cut(f / "model.safetensors"),
            r"model\.safetensors: [\d,]+ bytes that are no whole safetensors file",
        ),
        (lambda f: (f / "model.safetensors").write_text("<html>404</html>" * 9), "no whole safetensors file"),
        (
            lambda f: (f / "model.safetensors").rename(f / "w.safetensors"),
            r"has w\.safetensors, but no model\.safetensors\.i",
        ),
        (
            lambda f: cut(sorted(in_shards(f).glob("model-*"))[1]),
            r"model-00002-of-\d+\.safetensors: [\d,]+ bytes that are no",
        ),
        (
            lambda f: sorted(in_shards(f).glob("model-*"))[1].unlink(),
            r"index\.json: names model-00002-of-\d+\.safetensors, wh",
        ),
        (
            lambda f: (in_shards(f) / "model.safetensors.index.json").unlink(),
            r"has model-00001.*but no model\.safetensors\.i",
        ),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter; merge it into its model"),
        (lambda f: cut(f / "config.json", 2), r"config\.json: is no whole JSON \(line \d+: "),
        (lambda f: (f / "config.json").write_text("[" * 10**5), r"config\.json: is no whole JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json: holds list, expected a JSON object"),
        (
            lambda f: (p := f / "tokenizer_config.json").write_bytes(b"\xef\xbb\xbf" + p.read_bytes()),
            r"tokenizer_config\.json: is no whole JSON \(line 1: Unexpected UTF-8 BOM",
        ),
        (lambda f: cut(f / "tokenizer_config.json", 2), r"tokenizer_config\.json: is no whole JSON"),
        (lambda f: cut(f / "tokenizer.json", 99), r"tokenizer\.json: is no whole JSON"),
        (
            lambda f: retold(f / "tokenizer.json", model={"type": "Newer"}),
            r"tokenizer\.json: tokenizers .* cannot read it, a newer",
        ),
        (
            lambda f: retold(f / "config.json", model_type="llama9"),
            r"config\.json: transformers .* has no model_type 'llama9'",
        ),
        (lambda f: retold(f / "config.json", model_type=None), r"config\.json: names no model_type"),
        (lambda f: retold(f / "config.json", model_type="t5"), "has no causal language model of model_type 't5'"),
        (
            lambda f: retold(f / "config.json", num_attention_heads=3),
            r"config\.json: transformers cannot read it: .*hidden size",
        ),
        (lambda f: retold(f / "config.json", hidden_size=-16), r"config\.json: transformers cannot load the model"),
    ],
)
def test_a_damaged_file_is_named_with_what_it_is(tmp_path, folders, damage, said):
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    damage(folder)

    def opened():
        language.load_tokenizer(folder, tiny_models.SETTINGS)
        language.load(folder, tiny_models.SETTINGS, "cpu")

    with pytest.raises((language.LanguageModelError, language_files.ModelFilesError), match=said):
        opened()


def retold(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_files_are_looked_at_without_torch(folders):
    code = "from saeflow.models import language_files as f; f.files_of(sys.argv[1]); sys.exit('torch' in sys.modules)"
    scripts = Path(language.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", folders["llama"]],
        check=True,
        env=os.environ | {"PYTHONPATH": str(scripts)},
    )


def test_attention_is_what_the_study_names_or_what_the_model_has(tmp_path, folders, caplog):
    mamba = tiny_models.build("gemma2", tmp_path, **tiny_models.FAMILIES["gemma2"][0])

    def used(folder, attention):
        return language.load(folder, tiny_models.SETTINGS | {"attention": attention}, "cpu").config._attn_implementation

    assert [used(folders["llama"], name) for name in (None, "sdpa", "eager")] == ["sdpa", "sdpa", "eager"]
    assert not caplog.text
    assert used(mamba, None) == used(mamba, "sdpa") == "eager"
    assert "attention: the model has no sdpa; transformers chooses" in caplog.text
    with pytest.raises(language.LanguageModelError, match="attention: 'flash_attention_2' is not to be had"):
        used(folders["llama"], "flash_attention_2")


def test_a_folder_without_model_weights_or_tokenizer_is_refused(tmp_path, folders):
    with pytest.raises(language_files.ModelFilesError, match="lost: is no folder"):
        language_files.files_of(tmp_path / "lost")
    with pytest.raises(language_files.ModelFilesError, match=r"has no config\.json"):
        language.load(tmp_path, tiny_models.SETTINGS, "cpu")
    (tmp_path / "config.json").write_text((folders["llama"] / "config.json").read_text())
    with pytest.raises(language_files.ModelFilesError, match="has no weights"):
        language.load(tmp_path, tiny_models.SETTINGS, "cpu")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(language_files.ModelFilesError, match=r"only pytorch_model\.bin, which can run code"):
        language.load(tmp_path, tiny_models.SETTINGS, "cpu")
    with pytest.raises(language.LanguageModelError, match="no tokenizer"):
        language.load_tokenizer(tmp_path / "lost", tiny_models.SETTINGS)


def hub_error(kind):
    return kind("no", response=httpx2.Response(403, request=httpx2.Request("GET", "https://hub.example")))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (errors.GatedRepoError, "a/b: gated; accept its terms .* HF_TOKEN"),
        (errors.RepositoryNotFoundError, "a/b: not on the hub, or private"),
        (errors.RevisionNotFoundError, "a/b: has no revision 'main'"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_told_with_what_to_do(tmp_path, monkeypatch, kind, said):
    def refuse(*_, **__):
        raise hub_error(kind)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(language_files.ModelFilesError, match=said):
        language_files.download("a/b", "main", tmp_path, False)


def test_a_download_takes_no_pickle_and_notes_the_commit(tmp_path, monkeypatch, folders):
    asked = {}

    def fetch(name, *, revision, local_dir, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        shutil.copytree(folders["llama"], local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    language_files.download("a/b", "main", tmp_path / "m", False)
    assert (asked["name"], asked["revision"]) == ("a/b", "c0ffee")
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in asked["patterns"])
    note = json.loads((tmp_path / "m" / language_files.SNAPSHOT).read_text())
    assert note == {"id": "a/b", "revision": "main", "commit": "c0ffee"}
    assert language_files.snapshot_name("a/b", "main") == "a--b@main"


def test_a_model_that_brings_its_own_code_is_refused(tmp_path, folders):
    config = json.loads((folders["llama"] / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    (tmp_path / "model.safetensors").write_bytes((folders["llama"] / "model.safetensors").read_bytes())
    with pytest.raises(language.LanguageModelError, match="code of its own; read it, then set trust_remote_code"):
        language.load(tmp_path, tiny_models.SETTINGS, "cpu")
    assert not (tmp_path / "it-ran").exists()


def test_tokens_are_shown_as_readers_see_them(tokens, data_dir):
    ids = tokens.encode(["the cat xyz"])[0]
    assert tokens.strings([*ids, tokens.start]) == ["the", "cat", "<unk>", "<s>"]
    pieces = language.load_tokenizer(data_dir / "models/tinystories-llama-3m", tiny_models.SETTINGS)
    ids = pieces.encode(["Once upon a dog.\né"])[0]
    shown = pieces.strings(ids)
    assert shown[:4] == [" Once", " upon", " a", " dog"]
    assert all(shown)


def byte_tokenizer(**names):
    """Of byte pairs, with some marks of a chat; it can read everything."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(["the cat"], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.add_tokens(["<|user|>", "<|end|>"], special_tokens=True)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def special_of(tokenizer, start=None):
    return set(tokenizer.convert_ids_to_tokens(sorted(language.Tokens(tokenizer, start).special)))


def test_special_are_named_tokens_and_marks_but_not_what_stands_for_text_that_cannot_be_read(tokens):
    chat = {"<|user|>", "<|end|>"}
    end = "<|endoftext|>"
    assert special_of(byte_tokenizer(bos_token=end, eos_token=end, unk_token=end)) == chat | {end}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert special_of(byte_tokenizer(**named)) == chat | set(named.values())
    # Bytes stand for all that has no token, so that no text gives `<unk>` but its name.
    assert special_of(byte_tokenizer(bos_token="<s>", unk_token="<unk>")) == chat | {"<s>", "<unk>"}
    assert special_of(byte_tokenizer()) == chat
    # A word that a vocabulary of words lacks is text all the same, unless its token has another role.
    assert tokens.encode(["a zebra"]) == [[tokens.encode(["a"])[0][0], tokens.tokenizer.unk_token_id]]
    assert tokens.special == {tokens.start}
    assert tokens.no_words == {tokens.start, tokens.tokenizer.unk_token_id}
    both = Tokenizer(models.WordLevel({"<e>": 0, "a": 1}, unk_token="<e>"))
    both.pre_tokenizer = pre_tokenizers.Whitespace()
    assert special_of(PreTrainedTokenizerFast(tokenizer_object=both, unk_token="<e>", eos_token="<e>")) == {"<e>"}


def test_special_tokens_that_a_text_spells_out_are_read_but_are_no_text():
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    tokens = language.Tokens(tokenizer, tokenizer.bos_token_id)
    chat = "<|user|>the cat<|end|> at</s>the <think>hat<s>tac"
    documents = [chat, f"<s>{chat}", "<s></s>", "</s><s>hat"] * 30
    packed = list(contexts.pack(enumerate(documents), tokens.encode, start=tokens.start, context_size=8, n_tokens=None))
    whole = contexts.Contexts.concatenate(packed)
    special, spelt = np.isin(whole.tokens, list(tokens.special)), tokens.encode(documents)
    assert np.array_equal(whole.position == contexts.NO_TEXT, special)
    assert not special[whole.is_text].any()
    assert np.isin(tokenizer.convert_tokens_to_ids("<think>"), whole.tokens[whole.is_text])
    # All others keep their place in the document, counted with the special tokens that it spells out.
    at = np.nonzero(~special)
    for document, position, token in zip(whole.document[at], whole.position[at], whole.tokens[at], strict=True):
        assert spelt[document][position] == token
    # A document that begins with the start token gets no other.
    assert not ((whole.tokens[:, 1:] == tokens.start) & (whole.tokens[:, :-1] == tokens.start)).any()


def test_documents_of_special_tokens_alone_hold_no_text(tmp_path, llama, tokens):
    documents = [(0, "<s> " * 40), (1, "the cat sat on the mat .")]
    made = contexts.pack(documents, tokens.encode, start=tokens.start, context_size=4, n_tokens=6)
    contexts.write(tmp_path / "t.parquet", made, context_size=4, start=tokens.start)
    file = contexts.TokenFile.open(tmp_path / "t.parquet")
    assert (file.text_tokens()[:10] == 0).all()
    batches = list(file.batches(3))
    assert not batches[0].is_text.any()
    assert write_store(tmp_path / "s", llama, batches, {"x": Hook(module="model.layers.0")}) == file.text_tokens().sum()
    stored = ActivationStore.open(tmp_path / "s" / "x").source()[:, -1].tolist()
    assert set(stored) <= set(tokens.encode(["the cat sat on the mat ."])[0])
    loss, n = language.loss_sum(llama, torch.from_numpy(batches[0].tokens), torch.from_numpy(batches[0].is_text))
    assert (float(loss), n) == (0, 0)
    with pytest.raises(texts.TextError, match="the 1 document of this split do not fill a context of 4 tokens with"):
        list(contexts.pack(documents[:1], tokens.encode, start=tokens.start, context_size=4, n_tokens=None))


def test_no_special_token_of_a_real_model_is_stored_though_the_text_spells_it_out(data_dir):
    tokens = language.load_tokenizer(data_dir / "models/tinystories-llama-3m", tiny_models.SETTINGS)
    story = "Tom had a <s>big</s> ball. <unk> He liked it."
    packed = contexts.pack([(i, story) for i in range(40)], tokens.encode, start=1, context_size=32, n_tokens=None)
    whole = contexts.Contexts.concatenate(packed)
    assert {0, 1, 2} <= set(whole.tokens.ravel().tolist())
    assert not {0, 1, 2} & set(whole.tokens[whole.is_text].tolist())


def test_a_word_level_vocabulary_has_the_most_frequent_words():
    tokens = language_training.word_tokenizer(["B b c. a", "b c"], 5)
    assert tokens.tokenizer.get_vocab() == {"<unk>": 0, "<s>": 1, "b": 2, "c": 3, ".": 4}
    assert tokens.encode(["b, C."]) == [[2, 0, 3, 4]]


def test_training_lowers_the_loss_and_gives_the_same_bytes_again(tokens, batch):
    spec = EmbeddedModel(width=16, layers=1, heads=2, mlp_width=32, steps=80, batch_size=4, warmup_steps=5)
    runs = []
    for _ in range(2):
        model = language_training.untrained(spec, len(tokens.tokenizer), 8, seed=3)
        assert abs(float(model.lm_head.weight.detach().std()) - spec.lm_head_std) < 2e-4
        before = language_training.mean_loss(model, batch, 3, "cpu")
        curve = language_training.train(model, batch, spec, seed=3)
        runs.append((model.state_dict(), curve))
    assert before == pytest.approx(np.log(len(tokens.tokenizer)), abs=0.05)
    assert language_training.mean_loss(model, batch, 3, "cpu") < 0.6 * before
    assert curve[-1]["step"] == 80
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].values(), runs[1][0].values(), strict=True))


def test_the_step_size_rises_and_falls_to_a_tenth():
    spec = EmbeddedModel(steps=100, warmup_steps=10)
    values = [language_training.schedule(spec, step) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1
    assert values[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_trained_model_is_loaded_as_it_was_saved(tmp_path, tokens, batch):
    spec = EmbeddedModel(width=16, layers=1, heads=2, mlp_width=32, steps=5, batch_size=2, warmup_steps=0)
    model = language_training.untrained(spec, len(tokens.tokenizer), 8, seed=0)
    language_training.save(model, tokens, tmp_path)
    again = language.load(tmp_path, tiny_models.SETTINGS | {"attention": "sdpa"}, "cpu")
    ids = torch.from_numpy(batch.tokens)
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits.detach())
    assert language.load_tokenizer(tmp_path, tiny_models.SETTINGS).start == tokens.start
