"""Sentence scores are those of each sentence on its own, at the module that was asked for."""

import numpy as np
import pytest
import torch
from random_saes import random_sae
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.datasets import concept_texts
from saeflow.features import concept_tests
from saeflow.features.sentence_scores import HookPointError, sentence_scores, with_random_weights

WORDS = "the a cat dog sat ran on under mat tree".split()  # noqa: SIM905
SENTENCES = ["the cat sat", "a dog ran under the tree", "cat", "the mat on the mat on the mat"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=12, **sizes)).eval()


def tokenizer(start=True):
    words = {word: i for i, word in enumerate(["<s>", "?", *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if start:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="?")


@pytest.mark.parametrize("start", [True, False])
def test_a_batch_gives_what_each_sentence_gives_alone_without_the_start_token(model, start):
    sae = random_sae("standard", 16, 40, dtype=torch.float32)
    features, dense = sentence_scores(model, tokenizer(start), "model.layers.0", SENTENCES, sae, batch_size=3)
    for row, sentence in enumerate(SENTENCES):
        ids = torch.tensor([tokenizer(start)(sentence)["input_ids"]])
        with torch.no_grad():
            x = model(ids, output_hidden_states=True).hidden_states[1][0, int(start) :]
        np.testing.assert_allclose(dense[row], x.mean(0), atol=1e-5)
        np.testing.assert_allclose(features[[row]].toarray()[0], sae.encode(x).amax(0), atol=1e-5)
    assert features.nnz < features.shape[0] * features.shape[1]


def test_the_input_of_a_module_can_be_read(model):
    sae = random_sae("standard", 16, 40, dtype=torch.float32)
    _, after = sentence_scores(model, tokenizer(), "model.layers.0", SENTENCES, sae)
    _, before = sentence_scores(model, tokenizer(), "model.layers.1.input_layernorm", SENTENCES, sae, side="input")
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_the_control_has_the_lengths_of_the_sae_and_none_of_its_directions():
    sae = random_sae("standard", 64, 40, dtype=torch.float32)
    control = with_random_weights(sae, 1)
    torch.testing.assert_close(control.W_enc.norm(dim=0), sae.W_enc.norm(dim=0))
    cosines = torch.nn.functional.cosine_similarity(control.W_enc, sae.W_enc, dim=0)
    assert cosines.abs().mean() < 0.2  # sqrt(2 / (64 pi)) = 0.1 for random directions
    assert torch.equal(control.W_enc, with_random_weights(sae, 1).W_enc)


def test_errors_name_the_hook_point_the_width_and_the_sentence(model):
    sae = random_sae("standard", 16, 40, dtype=torch.float32)
    with pytest.raises(HookPointError, match=r"nearest: model\.layers\.1"):
        sentence_scores(model, tokenizer(), "model.layer.1", SENTENCES, sae)
    with pytest.raises(ValueError, match="of width 16, but the SAE is of width 6"):
        sentence_scores(model, tokenizer(), "model.layers.1", SENTENCES, random_sae("standard", dtype=torch.float32))
    with pytest.raises(ValueError, match="sentence '' has no token"):
        sentence_scores(model, tokenizer(), "model.layers.1", ["the cat", ""], sae)


def test_a_real_model_tells_questions_and_shuffled_texts_fail(data_dir):
    folder = data_dir / "models" / "tinystories-llama-260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    from test_concept_tests import TEXTS

    texts = concept_texts.read([path for path in TEXTS if path.stem in ("questions", "statements", "numbers")])
    width = network.config.hidden_size
    sae = random_sae("topk", width, 4 * width, dtype=torch.float32)
    features, dense = sentence_scores(
        network, AutoTokenizer.from_pretrained(folder), "model.layers.2", texts.sentences, sae
    )
    verdicts, _ = concept_tests.evaluate(features, dense, texts.labels, texts.names, n_shuffles=50)
    found = dict(zip(texts.names, verdicts, strict=True))
    assert found["questions"].probe_auroc > 0.95
    assert found["questions"].passed
    shuffled = np.random.default_rng(0).permutation(texts.labels)
    verdicts, _ = concept_tests.evaluate(features, dense, shuffled, texts.names, n_shuffles=50)
    assert max(verdict.probe_auroc for verdict in verdicts) < 0.7
