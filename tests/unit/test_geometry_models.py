"""Geometry on small models of every architecture: unembeddings, labelled contexts, vectors added, SAEs measured."""

import copy
import dataclasses

import language_families
import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from transformers import GPT2LMHeadModel

from saeflow.config.geometry import SCHEDULED, SHUFFLED, TEACHER
from saeflow.geometry import comparison, contexts, interventions, spaces, steering_verdict, unembedding
from saeflow.geometry.concepts import Concepts
from saeflow.geometry.contexts import NONE, LabelledContexts
from saeflow.geometry.evaluation import Bench, codes_of, evaluate
from saeflow.models import language, readout
from saeflow.models.language_training import word_tokenizer
from saeflow.sae.hierarchical import HierarchicalSAEs
from saeflow.sae.hierarchical_training import Member, Shape, initial


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_models.save(name, root / name) for name in tiny_models.ARCHITECTURES}


@pytest.fixture(scope="module")
def llama(folders):
    return language.load(folders["llama"], tiny_models.SETTINGS, "cpu")


def concepts():
    """Two parents of two children with four words each, over tokens 2 to 17."""
    table = pd.DataFrame(
        {
            "text": list("abcdefghijklmnop"),
            "lemma": list("abcdefghijklmnop"),
            "token": np.arange(2, 18),
            "parent": np.repeat([0, 1], 8),
            "child": np.repeat([0, 1, 2, 3], 4),
            "held_out": np.tile([False, True], 8),
        }
    )
    return Concepts(("p", "q"), ("p/a", "p/b", "q/a", "q/b"), np.array([0, 0, 1, 1]), table)


@pytest.fixture
def saved(tmp_path):
    """Saves a model of a family, with a tokenizer of words."""

    def save(kind, **own):
        model = language_families.build(kind, **own)
        model.save_pretrained(tmp_path / kind)
        word_tokenizer([tiny_models.WORDS], 100).tokenizer.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return save


def logits_and_states(folder):
    """The model's own, at some tokens of text, with the unembedding of its folder and the tokens that follow."""
    model = language.load(folder, tiny_models.SETTINGS, "cpu")
    tokens = torch.randint(2, 12, (3, 9), generator=torch.Generator().manual_seed(0))
    is_text = np.ones((3, 9), bool)
    is_text[1, 5] = False
    ((h, following),) = contexts.final_states(model, [(tokens.numpy(), is_text)])
    with torch.no_grad():
        logits = model(tokens).logits
    # Not the first token, not the last, not what is no text, and not the one before it.
    wanted = [(i, t) for i in range(3) for t in range(1, 8) if (i, t) not in ((1, 4), (1, 5))]
    assert following.tolist() == [int(tokens[i, t + 1]) for i, t in wanted]
    return model, torch.stack([logits[i, t] for i, t in wanted]), h


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_logits_are_the_unembedding_of_the_captured_states(folders, architecture):
    model, logits, h = logits_and_states(folders[architecture])
    gamma, bias, rows = unembedding.load(folders[architecture], tiny_models.SETTINGS)
    torch.testing.assert_close(h @ torch.from_numpy(gamma).T + torch.from_numpy(bias), logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(readout.logits(model, h), logits)
    tokenizer = language.load_tokenizer(folders[architecture], tiny_models.SETTINGS).tokenizer
    assert not set(rows.tolist()) & set(tokenizer.all_special_ids)
    assert rows.max() < len(tokenizer)


@pytest.mark.parametrize(
    "name",
    [
        "bloom",  # tied, and the configuration does not say so
        "biogpt",  # an unembedding by a name of its own
        "codegen",  # with a bias
        "cohere",  # logits are scaled
        "granite",
        "gemma2",  # and capped
        "gemma3 with vision",  # tied inside of a model of text and images
        "mpt",
        "nanochat",
        "opt, normed and projected",
        "recurrent_gemma",
        "rwkv",
    ],
)
def test_unembeddings_are_found_by_what_computes_the_logits(saved, name):
    kind, own, _ = language_families.FAMILIES[name]
    model, logits, h = logits_and_states(folder := saved(kind, **own))
    gamma, bias, _ = unembedding.load(folder, tiny_models.SETTINGS)
    torch.testing.assert_close(readout.logits(model, h), logits)
    linear = h @ torch.from_numpy(gamma).T + torch.from_numpy(bias)
    cap = getattr(model.config, "final_logit_softcapping", None) or getattr(model.config, "logits_soft_cap", None)
    expected = cap * torch.atanh(logits / cap) if cap else logits
    torch.testing.assert_close(linear, expected, rtol=2e-3, atol=2e-3 * float(expected.std()))


def test_logits_that_are_no_linear_function_are_refused(saved, monkeypatch):
    folder = saved("gpt2", n_embd=32, n_layer=1, n_head=4)
    forward = GPT2LMHeadModel.forward

    def squared(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        found.logits = found.logits**2
        return found

    monkeypatch.setattr(GPT2LMHeadModel, "forward", squared)
    with pytest.raises(unembedding.UnembeddingError, match=r"gpt2: .*more with its logits than scale and cap them"):
        unembedding.load(folder, tiny_models.SETTINGS)


def test_tokens_that_say_that_no_text_has_them_are_no_words():
    unused = ["<unused12>", "[unused12]", "<|reserved_special_token_3|>", "<|placeholder1|>", "<|reserved_200003|>"]
    assert all(unembedding.is_unused(token) for token in unused)
    words = ["unused", "Ġunused", "▁unused", "reserved", "<0x0A>", "[", "placeholder", "<extra>", "the"]
    assert not any(unembedding.is_unused(token) for token in words)


def test_prompts_are_read_at_their_own_ends(folders, llama):
    tokenizer = language.load_tokenizer(folders["llama"], tiny_models.SETTINGS)
    texts = ["the cat sat on", "a dog", "who saw the dog ran"]
    together = contexts.prompt_states(llama, tokenizer, texts, 2)
    with pytest.raises(ValueError, match=r"prompt 'a dog <s>' does not end with text; let geometry\.concepts"):
        contexts.prompt_states(llama, tokenizer, ["the cat", "a dog <s>"], 2)
    alone = torch.cat([contexts.prompt_states(llama, tokenizer, [text], 1) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_labels_are_the_concepts_that_hold_most_of_the_mass():
    p = np.full((4, 20), 1e-3)
    p[0, [2, 6]] = 0.5, 0.2  # parent p, child a
    p[1, [10, 14]] = 0.34, 0.34  # parent q, no child with more than half
    p[2, [2, 10]] = 0.45, 0.45  # no parent with more than half of all
    p[3, 19] = 0.9
    p = p / p.sum(1, keepdims=True)
    found = contexts.label(torch.from_numpy(np.log(p)), lambda h: h, concepts(), 20)
    assert found.parent.tolist() == [0, 1, NONE, NONE]
    assert found.child.tolist() == [0, NONE, NONE, NONE]
    assert found.mass[0] == pytest.approx(p[0, 2:10].sum(), abs=1e-6)


def test_splits_share_the_labelled_contexts_in_their_proportions():
    is_labelled = np.arange(100) < 20
    rows, split = contexts.choose(is_labelled, (40, 10, 10), 0.5, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 60
    assert np.bincount(split).tolist() == [40, 10, 10]
    # 20 of 60 have a label, where 30 were asked for.
    assert [int(is_labelled[rows[split == s]].sum()) for s in range(3)] == pytest.approx(
        [40 / 3, 10 / 3, 10 / 3], abs=1
    )
    with pytest.raises(ValueError, match="100 contexts, but 101"):
        contexts.choose(is_labelled, (101, 0, 0), 0.5, np.random.default_rng(0))


def test_a_dose_moves_the_words_that_a_vector_was_fitted_on_by_itself():
    g = np.random.default_rng(0).normal(size=(20, 6))
    g[2:10] += 2
    g -= g.mean(0)
    rows = np.arange(2, 18)
    found = list(interventions.directions(g, g[::-1], concepts(), rows, seed=0))
    assert [d.kind for d in found[:3]] == ["parent", "random", "shuffled"]
    assert np.linalg.norm(found[1].vector) == pytest.approx(np.linalg.norm(found[0].vector))
    assert np.linalg.norm(found[2].vector) == pytest.approx(np.linalg.norm(found[0].vector))
    parent = found[0]
    # The words that it was fitted on are not the ones that it is measured on.
    fitted = np.setdiff1d(np.arange(2, 10), np.flatnonzero(parent.own))
    assert len(fitted) == 4
    assert (g[fitted] @ parent.vector).mean() == pytest.approx(1)
    base = np.random.default_rng(1).normal(size=(5, 20))
    two, four = interventions.at_final_layer(base, g, parent, (2.0, 4.0))
    assert four.target == pytest.approx(2 * two.target)
    assert two.target == pytest.approx(2 * (g[parent.own] @ parent.vector).mean())
    # Two children of two measured words each, over which the step changes the odds.
    odds = [
        np.log([np.exp(x[:, parent.families == c]).sum(1) for c in (0, 1)])
        for x in (base, base + 2 * g @ parent.vector)
    ]
    before, after = (1 / (1 + np.exp(b - a)) for a, b in odds)
    expected = after * np.log(after / before) + (1 - after) * np.log((1 - after) / (1 - before))
    assert two.sibling_kl == pytest.approx(expected.mean())
    assert two.other == pytest.approx(2 * np.abs(g[10:18] @ parent.vector).mean())


def test_steps_inside_a_model_reach_the_last_token_alone_and_stop_with_the_hook(llama):
    tokens = torch.randint(2, 12, (4, 6), generator=torch.Generator().manual_seed(1))
    rows = np.arange(2, 12)
    # In double precision: logits of one place and of all are not rounded alike.
    llama = copy.deepcopy(llama).double()
    # After the last block, before the norm, so that the direction is the only thing between.
    inner = interventions.InnerBlock(llama, "model.layers.0", tokens, rows, lambda v: v)
    with torch.no_grad():
        expected = llama(tokens).logits[:, -1, 2:12].double().numpy()
    assert np.allclose(inner.base, expected)
    none = np.zeros(10, bool)
    own = none.copy()
    own[:4] = True
    direction = interventions.Direction(
        "p", "parent", np.random.default_rng(0).normal(size=16), own, none, ~own, np.arange(10) // 2
    )
    small, large = (inner.measured(direction, share) for share in (0.01, 1.0))
    assert abs(small.target) < abs(large.target)
    assert small.kl < large.kl
    assert np.allclose(inner._logits(), expected)


def test_a_model_that_cannot_be_asked_for_one_place_alone_is_steered_as_well(llama):
    class WithoutTheKeyword(type(llama)):
        def forward(self, input_ids, use_cache=None):
            return super().forward(input_ids, use_cache=use_cache)

    tokens, rows = torch.tensor([[2, 3, 4], [5, 6, 7]]), np.arange(2, 12)
    asked = interventions.InnerBlock(llama, "model.layers.0", tokens, rows, lambda v: v)
    older = copy.deepcopy(llama)
    older.__class__ = WithoutTheKeyword
    found = interventions.InnerBlock(older, "model.layers.0", tokens, rows, lambda v: v)
    assert np.allclose(found.base, asked.base, atol=1e-5)


def bench(n=400, d=6, seed=0):
    """Contexts along the unembedding: what a context is about to say, it points at."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(20, d))
    words = concepts()
    g[:8] += 2 * np.eye(d)[0]
    g[8:16] += 2 * np.eye(d)[1]
    saying = rng.integers(0, 20, n)
    h = 2 * g[saying] + 0.1 * rng.normal(size=(n, d))
    parent = np.where(saying < 16, saying // 8, NONE)
    child = np.where(saying < 16, saying // 4, NONE)
    split = rng.permutation(np.repeat([0, 1, 2], [n - 200, 100, 100]))
    labelled = LabelledContexts(h.astype(np.float32), saying + 2, parent, child, split)
    arrays = {"root": np.eye(d), "g": g.astype(np.float32), "bias": np.zeros(20, np.float32)}
    train, select, test = map(labelled.part, contexts.SPLITS)
    place = np.concatenate([[-1, -1], np.arange(20)])
    space = spaces.Space.of(arrays, "causal", train.h)
    return Bench(space, select, test, words, np.arange(16), place), labelled


def test_contexts_are_read_as_they_were_written(tmp_path):
    _, labelled = bench()
    labelled.save(tmp_path / "contexts.npz")
    read = LabelledContexts.load(tmp_path / "contexts.npz")
    assert np.array_equal(read.h, labelled.h)
    assert np.array_equal(read.split, labelled.split)


def test_coordinates_have_unit_variance_and_keep_the_logits():
    made, labelled = bench()
    train = labelled.part("train")
    x = made.space.coordinates(train.h)
    assert np.allclose(x.mean(0), 0, atol=1e-4)
    assert (x**2).sum(1).mean() == pytest.approx(6, rel=1e-4)
    assert np.allclose(made.space.logits(x), train.h @ made.space.g.T, atol=1e-3)


def fitted(made, labels):
    """An SAE whose first two parents fire on the contexts of a label."""
    x = made.x_select
    parameters = initial(Shape(4, 2, 2, 1), 6, Member("a", 0, "x"))
    for p in range(2):
        w = np.linalg.lstsq(np.c_[x, np.ones(len(x))], (labels == p) - 0.5, rcond=None)[0]
        parameters["encoder"][p] = torch.from_numpy(w[:6]).float()
        parameters["encoder_bias"][p] = float(w[6])
        parameters["decoder"][p] = torch.from_numpy(x[labels == p].mean(0))
    parameters["encoder_bias"][2:] = -99
    return HierarchicalSAEs({name: tensor[None] for name, tensor in parameters.items()}, 1)


def test_an_sae_that_is_the_hierarchy_is_pure_and_one_without_is_not():
    made, _ = bench()
    good, rows = evaluate(fitted(made, made.select.parent), made)
    poor, _ = evaluate(fitted(made, np.random.default_rng(3).permutation(made.select.parent)), made)
    assert good["purity"] > 0.95
    assert good["purity"] > poor["purity"] + 0.1
    assert good["recall"] > 0.9 > poor["recall"]
    assert good["steering_leak"] < poor["steering_leak"]
    assert [row["concept"] for row in rows] == ["p", "q"]
    assert good["one_minus_ev"] == pytest.approx(1 - good["ev"])
    assert good["one_minus_ce"] == pytest.approx(1 - good["ce_recovered"])


def test_cross_entropy_is_measured_evenly_over_contexts_with_a_label_and_without(monkeypatch):
    """Chosen contexts have those with a label first."""
    made, _ = bench(4000)
    order = np.argsort(made.test.parent == NONE, kind="stable")
    parts = (made.test.h, made.test.next_token, made.test.parent, made.test.child, made.test.split)
    test = LabelledContexts(*(part[order] for part in parts))
    monkeypatch.setattr("saeflow.geometry.evaluation.N_PREDICTED", 50)
    sampled = dataclasses.replace(made, test=test).predicted
    assert len(np.unique(sampled)) == 50
    assert (test.parent[sampled] == NONE).mean() == pytest.approx((test.parent == NONE).mean(), abs=0.021)


def test_recovered_cross_entropy_is_one_for_the_activations_and_zero_for_their_mean():
    made, _ = bench()
    clean, ablated = made.references
    assert clean < ablated
    assert made.cross_entropy(made.x_test[made.predicted]) == pytest.approx(clean)
    # An SAE that answers with its bias alone.
    silent = fitted(made, made.select.parent)
    silent.parameters["encoder_bias"][:] = -99
    numbers, _ = evaluate(silent, made)
    assert numbers["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert numbers["dead_share"] == 1
    assert codes_of(silent, made.x_test)[0].values.max() == 0


def test_starts_differ_by_what_teaches_them():
    made, labelled = bench()
    train = labelled.part("train")
    x = made.space.coordinates(train.h)
    arrays = {f"{name}.{part}": np.full((n, 6), i + 1.0) for i, name in enumerate(("teacher", "shuffled_teacher")) for part, n in (("parents", 2), ("deltas", 4))}  # fmt: skip  # noqa: E501
    parent_of = np.array([0, 0, 1, 1])
    assert spaces.taught("random", "causal", arrays, parent_of, x, train) is None
    assert (spaces.taught("teacher", "causal", arrays, parent_of, x, train).parents == 1).all()
    assert (spaces.taught("shuffled_teacher", "causal", arrays, parent_of, x, train).deltas == 2).all()
    means = spaces.taught("activation_teacher", "causal", arrays, parent_of, x, train)
    expected = x[train.parent == 1].mean(0)
    assert np.allclose(means.parents[1], expected)
    assert np.allclose(means.deltas[2], x[train.child == 2].mean(0) - expected, atol=1e-5)


def arms(teacher_purity):
    rows, metrics = [], []
    values = {SCHEDULED: (0.6, 0.2, 0.5), TEACHER: (teacher_purity, 0.1, 0.3), SHUFFLED: (0.6, 0.2, 0.5)}
    for arm, (purity, elsewhere, leak) in values.items():
        for seed in range(3):
            metrics.append({"arm": arm, "seed": seed, "step": 10, "ev": 0.8, "ce_recovered": 0.9})
            for c in range(5):
                row = {"purity": purity + 0.01 * c, "elsewhere": elsewhere, "activity": 1.0}
                row |= {"steering_leak": leak, "steering_kl": 1.0}
                rows.append({"arm": arm, "seed": seed, "step": 10, "concept": str(c), **row})
    return pd.DataFrame(metrics), pd.DataFrame(rows)


def test_arms_are_compared_with_the_baseline_of_the_same_schedule():
    table = comparison.compare(*arms(0.75), 10, 50, np.random.default_rng(0))
    found = table.set_index(["comparison", "quantity"])
    mine = found.loc[f"{TEACHER} against {SCHEDULED}"]
    assert mine.loc["purity, difference", ["value", "low", "high"]].tolist() == pytest.approx([0.15] * 3)
    assert mine.loc["leak mass, relative", "value"] == pytest.approx(-0.5)
    assert mine.loc["steering leak (mean), relative", "value"] == pytest.approx(-0.4)
    verdicts = mine["verdict"].to_dict()
    assert verdicts.pop("steering KL (median), relative") == "fail"
    assert set(verdicts.values()) == {"pass"}
    control = found.loc[f"{SHUFFLED} against {SCHEDULED}", "verdict"]
    assert set(control.iloc[:5]) == {"fail"}
    missed = comparison.compare(*arms(0.69), 10, 50, np.random.default_rng(0)).set_index("quantity")
    assert missed.loc["purity, difference", "verdict"].iloc[0] == "fail"


def test_parent_vectors_are_held_against_random_directions_of_equal_norm():
    rows = []
    for concept in "abcd":
        for dose in (2.0, 4.0):
            for kind, target, other, kl in (
                ("parent", dose, dose / 4, 0.01),
                ("random", 0.1, 1.0, 0.05),
                ("shuffled", 0, 1, 0.1),
            ):
                row = {
                    "target": target,
                    "other": other,
                    "siblings": np.nan,
                    "sibling_kl": kl,
                    "word_kl": kl,
                    "kl": 1.0,
                    "mass": 0.0,
                }
                rows.append({"site": "final layer", "concept": concept, "kind": kind, "dose": dose, **row})
    table = steering_verdict.verdict(pd.DataFrame(rows), 4.0, 50, np.random.default_rng(0)).set_index("quantity")
    assert table.loc["target, logits", "value"] == 4
    assert table.loc["target over other", ["value", "verdict"]].tolist() == [4, "pass"]
    assert table.loc["sibling KL over random direction's", "value"] == pytest.approx(0.2)
    worse = pd.DataFrame(rows)
    worse.loc[worse["kind"] == "parent", "sibling_kl"] = 0.04
    table = steering_verdict.verdict(worse, 4.0, 50, np.random.default_rng(0)).set_index("quantity")
    assert table.loc["sibling KL over random direction's", "verdict"] == "fail"
