"""Sentence scores are those of each sentence on its own, at the hook point that was asked for."""

import numpy as np
import pytest
import tiny_models
import torch
from random_saes import random_sae
from test_concept_tests import TEXTS

from saeflow.config.language import Hook
from saeflow.datasets import concept_texts
from saeflow.features import concept_tests
from saeflow.features.sentence_scores import sentence_scores, with_random_weights
from saeflow.models import language
from saeflow.models.hook_points import HookPointError

SENTENCES = ["the cat sat", "a dog ran on the mat .", "cat", "the mat on the mat on the mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return language.load(folder, tiny_models.SETTINGS, "cpu")


@pytest.fixture(scope="module")
def tokens(folder):
    return language.load_tokenizer(folder, tiny_models.SETTINGS)


def saes(d_in=16):
    return [random_sae("standard", d_in, 40, seed, torch.float32) for seed in (0, 1)]


def test_a_batch_gives_what_each_sentence_gives_alone_without_the_start_token(model, tokens):
    features, dense = sentence_scores(model, tokens, Hook(module="model.layers.0"), SENTENCES, saes(), batch_size=3)
    for row, sentence in enumerate(SENTENCES):
        ids = torch.tensor([[tokens.start, *tokens.encode([sentence])[0]]])
        x = model(ids, output_hidden_states=True).hidden_states[1][0, 1:]
        np.testing.assert_allclose(dense[row], x.mean(0), atol=1e-5)
        for sae, found in zip(saes(), features, strict=True):
            np.testing.assert_allclose(found[[row]].toarray()[0], sae.encode(x).amax(0), atol=1e-5)
    assert features[0].nnz < features[0].shape[0] * features[0].shape[1]


def test_special_tokens_that_a_sentence_spells_out_are_read_by_the_model_and_count_for_nothing(model, tokens):
    layer = Hook(module="model.layers.0")
    (features, _), dense = sentence_scores(model, tokens, layer, ["the cat <s> sat", "<s> the cat"], saes())
    ids = torch.tensor([[tokens.start, *tokens.encode(["the cat <s> sat"])[0]]])
    assert ids[0, 3] == tokens.start
    x = model(ids, output_hidden_states=True).hidden_states[1][0, [1, 2, 4]]
    np.testing.assert_allclose(dense[0], x.mean(0), atol=1e-5)
    np.testing.assert_allclose(features[[0]].toarray()[0], saes()[0].encode(x).amax(0), atol=1e-5)
    # A sentence that begins with the start token gets no other.
    np.testing.assert_allclose(dense[1], sentence_scores(model, tokens, layer, ["the cat"], saes())[1][0], atol=1e-5)
    with pytest.raises(ValueError, match="sentence '<s> <s>' has no token of text"):
        sentence_scores(model, tokens, layer, ["the cat", "<s> <s>"], saes())


def test_the_input_of_a_module_can_be_read(model, tokens):
    after, before = (
        sentence_scores(model, tokens, hook, SENTENCES, saes())[1]
        for hook in (Hook(module="model.layers.0"), Hook(module="model.layers.1.input_layernorm", side="input"))
    )
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_the_control_has_the_lengths_of_the_sae_and_none_of_its_directions():
    sae = random_sae("standard", 64, 40, dtype=torch.float32)
    control = with_random_weights(sae, 1)
    torch.testing.assert_close(control.W_enc.norm(dim=0), sae.W_enc.norm(dim=0))
    cosines = torch.nn.functional.cosine_similarity(control.W_enc, sae.W_enc, dim=0)
    assert cosines.abs().mean() < 0.2  # sqrt(2 / (64 pi)) = 0.1 for random directions
    assert torch.equal(control.W_enc, with_random_weights(sae, 1).W_enc)


def test_errors_name_the_hook_point_the_width_and_the_sentence(model, tokens):
    layer = Hook(module="model.layers.1")
    with pytest.raises(HookPointError, match=r"nearest: model\.layers\.1"):
        sentence_scores(model, tokens, Hook(module="model.layer.1"), SENTENCES, saes())
    with pytest.raises(ValueError, match="of width 16, but the SAE is of width 6"):
        sentence_scores(model, tokens, layer, SENTENCES, saes(6))
    with pytest.raises(ValueError, match="sentence '' has no token of text"):
        sentence_scores(model, tokens, layer, ["the cat", ""], saes())


def test_a_real_model_tells_questions_and_shuffled_texts_fail(data_dir):
    folder = data_dir / "models" / "tinystories-llama-260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    network = language.load(folder, tiny_models.SETTINGS, "cpu")
    texts = concept_texts.read([path for path in TEXTS if path.stem in ("questions", "statements", "numbers")])
    sae = random_sae("topk", network.config.hidden_size, 256, dtype=torch.float32)
    (features,), dense = sentence_scores(
        network,
        language.load_tokenizer(folder, tiny_models.SETTINGS),
        Hook(module="model.layers.2"),
        texts.sentences,
        [sae],
    )
    verdicts, _ = concept_tests.evaluate(features, dense, texts.labels, texts.names, n_shuffles=50)
    found = dict(zip(texts.names, verdicts, strict=True))
    assert found["questions"].probe_auroc > 0.95
    assert found["questions"].passed
    shuffled = np.random.default_rng(0).permutation(texts.labels)
    verdicts, _ = concept_tests.evaluate(features, dense, shuffled, texts.names, n_shuffles=50)
    assert max(verdict.probe_auroc for verdict in verdicts) < 0.7
