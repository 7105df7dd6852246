"""SAEs in a language model: what they cost it, and what is said of one that died."""

import dataclasses

import numpy as np
import pytest
import tiny_models
import torch
from random_saes import random_sae
from torch.nn.functional import cross_entropy

from saeflow.activations import ActivationStore
from saeflow.config.language import Hook
from saeflow.config.saes import ReLU, SparseAutoencoder, TopK, Training
from saeflow.datasets import contexts
from saeflow.models import language
from saeflow.sae import health, language_metrics
from saeflow.sae.stack import Member
from saeflow.sae.trainer import train

HOOK = Hook(module="model.layers.0")
TEXTS = ["the cat sat on the mat .", "who saw the dog ? it ran , the dog ran on", "a dog saw a cat .", "it sat ."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return language.load(tiny_models.save("llama", tmp_path_factory.mktemp("m")), tiny_models.SETTINGS, "cpu")


@pytest.fixture(scope="module")
def batch():
    tokens = tiny_models.word_tokenizer([tiny_models.WORDS], 100)
    packed = contexts.pack(enumerate(TEXTS), tokens.encode, start=tokens.start, context_size=8, n_tokens=None)
    return contexts.Contexts.concatenate(packed)


def test_a_batch_without_text_adds_nothing(model, batch):
    none = contexts.Contexts(batch.tokens, batch.document, np.full_like(batch.position, contexts.NO_TEXT))
    sae = random_sae("topk", 16, 40, dtype=torch.float32)
    replacements = language_metrics.ablations(torch.zeros(16)) | {"sae": language_metrics.reconstruction(sae)}
    found = language_metrics.cross_entropies(model, [none, batch], "x", HOOK, replacements)
    assert found == language_metrics.cross_entropies(model, [batch], "x", HOOK, replacements)


def by_hand(model, batch, by):
    """Cross-entropy with the second block run on what `by` makes of the text tokens behind the first."""
    ids, text = torch.from_numpy(batch.tokens), torch.from_numpy(batch.is_text)
    state = {}

    def keep(_module, _inputs, output):
        state["x"] = output.clone()
        output = output.clone()
        output[text] = by(output[text])
        return output

    handle = model.model.layers[0].register_forward_hook(keep)
    logits = model(ids).logits
    handle.remove()
    return float(cross_entropy(logits[:, :-1][text[:, 1:]], ids[:, 1:][text[:, 1:]]))


def test_cross_entropies_are_those_of_a_reference(model, batch):
    sae = random_sae("topk", 16, 40, dtype=torch.float32)
    mean = torch.randn(16, dtype=torch.float64)
    replacements = language_metrics.ablations(mean) | {"sae": language_metrics.reconstruction(sae)}
    halves = [contexts.Contexts(*(getattr(batch, n)[s] for n in contexts.COLUMNS)) for s in (slice(2), slice(2, None))]
    found = language_metrics.cross_entropies(model, halves, "x", HOOK, replacements)
    wanted = {
        "clean": by_hand(model, batch, lambda x: x),
        "zero": by_hand(model, batch, torch.zeros_like),
        "mean": by_hand(model, batch, lambda x: mean.float().expand_as(x)),
        "sae": by_hand(model, batch, sae),
    }
    assert found == pytest.approx(wanted, rel=1e-5)
    columns = language_metrics.recovered(found, "sae")
    assert columns["ce_sae"] == found["sae"]
    for kind in ("zero", "mean"):
        costs = wanted[kind] > wanted["clean"]
        share = (wanted[kind] - wanted["sae"]) / (wanted[kind] - wanted["clean"])
        assert columns[f"ce_recovered_{kind}"] == (pytest.approx(share, rel=1e-3) if costs else None)


def test_start_tokens_and_the_first_of_a_context_keep_their_activations(model, batch):
    seen = []
    language_metrics.cross_entropies(model, [batch], "x", HOOK, {"count": lambda x: (seen.append(len(x)), x)[1]})
    assert seen == [batch.is_text.sum()]
    assert not batch.is_text[:, 0].any()
    assert not batch.is_text[batch.position == contexts.NO_TEXT].any()


def test_a_perfect_reconstruction_recovers_everything():
    columns = language_metrics.recovered({"clean": 1.0, "zero": 3.0, "mean": 0.9, "sae": 1.0}, "sae")
    assert columns["ce_recovered_zero"] == 1
    assert columns["ce_recovered_mean"] is None


def test_a_loss_that_is_no_number_is_told(model, batch):
    with pytest.raises(ValueError, match=r"hook point 'x': cross-entropy \(nan\) is nan"):
        language_metrics.cross_entropies(model, [batch], "x", HOOK, {"nan": lambda x: x * float("nan")})


def trained(spec: SparseAutoencoder, **changes):
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    settings = {"steps": 60, "batch_size": 50, "warmup_steps": 0, "sparsity_warmup_steps": 0, "dead_after": 500}
    training = Training(**settings | changes)
    return train(ActivationStore.from_array(x), [Member("one", spec, 0)], training)[0], training


def test_an_sae_that_died_is_told_with_its_penalty_and_what_to_try():
    spec = ReLU(architecture="relu", d_sae=16, penalty=500, dead_latents="none")
    result, training = trained(spec, learning_rate=0.05)
    with pytest.raises(health.DeadSAEError) as error:
        health.check(result, training)
    for said in ("one: ", "of 16 latents", "penalty 500: try a tenth", "learning_rate than 0.05", "dead_latents: auxk"):
        assert said in str(error.value)


def test_an_sae_that_lives_is_let_pass(caplog):
    result, training = trained(TopK(architecture="topk", d_sae=16, k=4))
    assert health.check(result, training) is result
    assert not [record for record in caplog.records if record.name == health.__name__]


def test_many_dead_latents_are_warned_of(caplog):
    result, training = trained(TopK(architecture="topk", d_sae=16, k=4))
    curves = result.curves | {"dead_share": [*result.curves["dead_share"][:-1], 0.4]}
    assert health.check(dataclasses.replace(result, curves=curves), training)
    assert "40% of 16 latents have not fired" in caplog.text
    assert "k 4: try a larger k" in caplog.text


def test_rows_of_a_store_can_be_told_apart_by_their_source(batch):
    """What the windows of dashboards rest on: a document's tokens are consecutive rows of one context."""
    text = batch.is_text
    document, position = batch.document[text], batch.position[text]
    context = np.nonzero(text)[0]
    same = (np.diff(document) == 0) & (np.diff(context) == 0)
    assert (np.diff(position)[same] == 1).all()
