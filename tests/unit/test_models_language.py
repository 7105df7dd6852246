"""Language models: loaded, hooked, captured, trained."""

import json
import shutil
from types import SimpleNamespace

import httpx2
import huggingface_hub
import numpy as np
import pytest
import tiny_models
import torch
from huggingface_hub import errors

from saeflow.activations import ActivationStore, Part, PartWriter
from saeflow.config_language import EmbeddedModel, Hook
from saeflow.datasets import contexts
from saeflow.models import hook_points, language, language_capture, language_files, language_training

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
    assert language_capture.width(model, hooks, 1) == {"first": 16, "before": 16, "inner": wide}
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


def write_store(path, model, batches, hooks, dtype="float32"):
    widths = language_capture.width(model, hooks, 1)
    writers = {
        name: ActivationStore.create(
            path / name, widths[name], dtype, chunk_rows=5, source_columns=language_capture.SOURCE
        )
        for name in hooks
    }
    n = language_capture.capture(model, batches, hooks, writers)
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
    assert np.array_equal(file.text_tokens(), np.tile(batch.is_text.sum(1), 7))

    def chunks(n):
        found = []
        for i in range(n):
            share = language_capture.Share.of(file, i, n, chunk_rows=5, batch_size=3)
            source = language_capture.SOURCE
            with PartWriter(
                tmp_path / f"{n}-{i}", d=16, dtype="float32", chunk_rows=5, source_columns=source
            ) as writer:
                batches = file.batches(3, share.contexts)
                written = language_capture.capture(llama, batches, hooks, {"x": writer}, share)
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
    said = rf"hook point 'x': the activation of token {token} \(document 0, position \d\) is not finite"
    with pytest.raises(language.LanguageModelError, match=said):
        write_store(tmp_path, model, [batch], {"x": Hook(module="model.layers.0", side="input")})


def test_a_tokenizer_of_another_model_is_refused(llama, tokens):
    other = language_training.word_tokenizer([" ".join(f"w{i}" for i in range(50))], 100)
    with pytest.raises(language.LanguageModelError, match="the tokenizer has 52 tokens, the model embeds 20"):
        language.check(llama, other, 8, "m")


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
