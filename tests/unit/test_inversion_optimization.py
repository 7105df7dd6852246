"""Search for inputs: on planted features whose maximiser is known, and on models of several architectures."""

import itertools
from types import SimpleNamespace

import language_families
import pytest
import tiny_models
import tokenizers
import torch
from random_saes import random_sae
from torch import nn
from transformers import PreTrainedTokenizerFast

from saeflow.config.language import Hook
from saeflow.inversion.optimization import baselines, candidates, epo, front, gcg, measures, soft
from saeflow.inversion.optimization.objective import BACKWARD, Objective, ObjectiveError, Readout
from saeflow.inversion.optimization.vocabulary import Vocabulary, VocabularyError
from saeflow.models import language
from saeflow.models.language_training import word_tokenizer
from saeflow.sae.architectures import ARCHITECTURES

LENGTH, WIDTH, N_WORDS, N_PLANTED = 6, 24, 150, 20


class Echo(nn.Module):
    """x_t = sum over j <= t of E(token_j) rotated t - j times and shrunk: every place adds to a feature on its own."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(n_rows, WIDTH, _weight=torch.randn(n_rows, WIDTH, generator=generator))
        self.rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
        self.mixed = nn.Identity()
        self.config = SimpleNamespace()
        self.requires_grad_(False)

    def get_input_embeddings(self):
        return self.embed

    def powers(self, n):
        powers = [torch.eye(WIDTH)]
        for _ in range(n - 1):
            powers.append(0.8 * powers[-1] @ self.rotation)
        return torch.stack(powers)

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        n, powers = x.shape[1], self.powers(x.shape[1])
        states = torch.stack([sum(x[:, j] @ powers[t - j] for j in range(t + 1)) for t in range(n)], dim=1)
        return SimpleNamespace(logits=self.mixed(states) @ self.embed.weight.T)


@pytest.fixture(scope="module")
def words():
    return word_tokenizer([" ".join(f"w{i}" for i in range(N_WORDS))], 1000)


@pytest.fixture(scope="module")
def planted(words):
    """Features of the echo with their maximisers: the best token for each place, from the closed form."""
    model = Echo(len(words.tokenizer))
    weight = torch.randn(N_PLANTED, WIDTH, generator=torch.Generator().manual_seed(1))
    vocabulary = Vocabulary(words, len(words.tokenizer))
    gains = torch.einsum("vd,kde,fe->fkv", model.embed.weight, model.powers(LENGTH), weight)
    gains[..., ~vocabulary.allowed] = -torch.inf
    top = gains.max(-1)
    readout = Readout(weight, torch.zeros(N_PLANTED))
    objective = Objective(model, "mixed", Hook(module="mixed"), readout, start=None)
    return objective, vocabulary, top.indices.flip(1), top.values.sum(1)


def first_features(objective, n):
    readout = Readout(objective.readout.weight[:n], objective.readout.bias[:n])
    return Objective(objective.model, objective.name, objective.hook, readout, objective.start)


def no_windows(starts):
    return [baselines.aligned([], starts.shape[-1])] * len(starts)


def random_starts(vocabulary, n_features, restarts, length):
    return baselines.dataset_starts([[]] * n_features, vocabulary, restarts, length, seed=0)


def test_planted_features_are_found(planted):
    objective, vocabulary, maximisers, highest = planted
    starts = random_starts(vocabulary, N_PLANTED, 4, LENGTH)
    found = gcg.search(objective, vocabulary, starts, no_windows(starts), gcg.GCGSettings(evaluations=3000), seed=0)
    assert (found.best == maximisers).all(1).sum() >= 19
    assert (found.scores.amax(1) <= highest + 1e-3).all()
    assert (found.spent <= 3000).all()


def test_random_search_of_the_same_budget_does_not_find_them(planted):
    objective, vocabulary, maximisers, highest = planted
    found = baselines.random_search(objective, vocabulary, LENGTH, 3000, seed=0)
    assert not (found.tokens == maximisers).all(1).any()
    assert (found.scores < highest).all()


def test_a_search_gives_the_same_again_and_one_feature_does_not_depend_on_the_next(planted):
    objective, vocabulary, *_ = planted
    starts, spec = random_starts(vocabulary, N_PLANTED, 2, LENGTH), gcg.GCGSettings(evaluations=600)
    a, b = (gcg.search(objective, vocabulary, starts, no_windows(starts), spec, seed=3) for _ in range(2))
    assert torch.equal(a.tokens, b.tokens)
    assert a.curve == b.curve
    alone = gcg.search(first_features(objective, 3), vocabulary, starts[:3], no_windows(starts)[:3], spec, seed=3)
    assert torch.equal(alone.tokens, a.tokens[:3])


def test_a_search_that_finds_nothing_new_stops_early(planted):
    objective, vocabulary, maximisers, _ = planted
    spec = gcg.GCGSettings(evaluations=50_000, stop_after=2, patience=2)
    found = gcg.search(objective, vocabulary, maximisers[:, None], no_windows(maximisers), spec, seed=0)
    assert torch.equal(found.best, maximisers)
    assert (found.spent < 5000).all()


def test_the_cost_is_what_went_through_the_model(planted):
    objective, vocabulary, *_ = planted
    passed = []
    handle = objective.model.register_forward_pre_hook(
        lambda _m, args, kwargs: passed.append(len(next(iter(kwargs.values())))), with_kwargs=True
    )
    objective.cost.forward = objective.cost.backward = 0
    starts = random_starts(vocabulary, N_PLANTED, 3, LENGTH)
    found = gcg.search(objective, vocabulary, starts, no_windows(starts), gcg.GCGSettings(evaluations=500), seed=0)
    handle.remove()
    assert sum(passed) == objective.cost.forward
    assert objective.cost.evaluations == objective.cost.forward + BACKWARD * objective.cost.backward
    assert int(found.spent.sum()) == objective.cost.evaluations


def test_soft_prompts_are_at_least_what_any_token_reaches_and_stay_in_bounds(planted):
    objective, vocabulary, _, highest = planted
    starts = random_starts(vocabulary, N_PLANTED, 2, LENGTH)
    found = soft.optimise(objective, starts, vocabulary.ids, soft.SoftSettings(steps=150, patience=60))
    longest = objective.embeddings[vocabulary.ids].norm(dim=1).max()
    assert (found.embedded.norm(dim=-1) <= longest + 1e-4).all()
    assert (found.scores.amax(1) > highest).all()
    # On a sphere the maximiser is known: every embedding along its own direction, at full length.
    directions = torch.einsum("kde,fe->fkd", objective.model.powers(LENGTH), objective.readout.weight)
    assert (found.scores.amax(1) > 0.97 * longest * directions.norm(dim=-1).sum(1)).all()
    torch.testing.assert_close(
        objective.soft_scores(found.embedded[:, 0], torch.arange(N_PLANTED)), found.scores[:, 0], rtol=1e-4, atol=1e-3
    )


def test_soft_prompts_of_the_simplex_cannot_beat_tokens_and_project_onto_them(planted):
    objective, vocabulary, maximisers, highest = planted
    starts = random_starts(vocabulary, N_PLANTED, 2, LENGTH)
    spec = soft.SoftSettings(steps=300, constraint="simplex", patience=300, learning_rate=0.2)
    found = soft.optimise(objective, starts, vocabulary.ids, spec)
    assert (found.scores.amax(1) <= highest + 1e-3).all()
    assert (found.scores.amax(1) > 0.9 * highest).all()
    best = found.embedded[torch.arange(N_PLANTED), found.scores.argmax(1)]
    projected = soft.project(best, objective.embeddings, vocabulary.ids)
    assert (projected == maximisers).double().mean() > 0.9


def test_soft_prompts_of_the_distribution_lie_within_the_spread_of_the_tokens(planted):
    objective, vocabulary, *_ = planted
    starts = random_starts(vocabulary, N_PLANTED, 1, LENGTH)
    found = soft.optimise(objective, starts, vocabulary.ids, soft.SoftSettings(steps=40, constraint="distribution"))
    table = objective.embeddings[vocabulary.ids]
    whitened = torch.linalg.inv(torch.linalg.cholesky(torch.cov(table.T)))
    distance = ((found.embedded - table.mean(0)) @ whitened.T).norm(dim=-1)
    assert (distance <= ((table - table.mean(0)) @ whitened.T).norm(dim=-1).max() * 1.001).all()


def test_a_front_holds_what_nothing_beats():
    scores, losses = torch.rand(200, generator=torch.Generator().manual_seed(0)), torch.rand(200)
    tokens = torch.arange(200)[:, None]
    kept = set(front.Front.of(tokens, scores, losses).tokens[:, 0].tolist())
    beaten = (
        (scores[None] >= scores[:, None])
        & (losses[None] <= losses[:, None])
        & ((scores[None] > scores[:, None]) | (losses[None] < losses[:, None]))
    ).any(1)
    assert kept == set((~beaten).nonzero()[:, 0].tolist())
    halves = front.Front.of(tokens[:90], scores[:90], losses[:90]).joined(tokens[90:], scores[90:], losses[90:])
    assert set(halves.tokens[:, 0].tolist()) == kept
    i = int(beaten.nonzero()[0])
    assert halves.dominates(float(scores[i]), float(losses[i]))
    assert not halves.dominates(2.0, 0.5)
    assert halves.best(-1.0) is None


def test_epo_reaches_the_planted_maximum_and_text_that_is_more_likely(planted):
    _, vocabulary, _, highest = planted
    objective, starts = first_features(planted[0], 4), random_starts(vocabulary, 4, 8, LENGTH)
    found = epo.evolve(
        objective, vocabulary, starts, no_windows(starts), highest[:4], epo.EPOSettings(evaluations=4000), seed=0
    )
    assert (found.spent <= 4000).all()
    for i, points in enumerate(found.fronts):
        assert points.scores[-1] > 0.9 * highest[i]
        assert points.losses[0] < points.losses[-1]
        again = objective.scores_and_losses(points.tokens, torch.full((len(points.scores),), i))
        torch.testing.assert_close(again[0], points.scores, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(again[1], points.losses, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_on_any_architecture_the_best_pair_of_tokens_is_found(tmp_path, architecture):
    folder = tiny_models.save(architecture, tmp_path)
    model = language.load(folder, tiny_models.SETTINGS, "cpu")
    tokens = language.load_tokenizer(folder, tiny_models.SETTINGS)
    _, blocks, inner, width = tiny_models.ARCHITECTURES[architecture]
    path = f"{blocks}.1.{inner}"
    weight = torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    objective = Objective(model, path, Hook(module=path), Readout(weight, torch.ones(2)), tokens.start)
    vocabulary = Vocabulary(tokens, len(objective.embeddings))
    everything = torch.tensor(list(itertools.product(vocabulary.ids.tolist(), repeat=2)))
    highest = objective.all_scores(everything).amax(0)
    starts = random_starts(vocabulary, 2, 2, 2)
    found = gcg.search(objective, vocabulary, starts, no_windows(starts), gcg.GCGSettings(evaluations=1500), seed=0)
    torch.testing.assert_close(found.scores.amax(1), highest, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_finite_differences_and_of_any_position(tmp_path):
    folder = tiny_models.save("llama", tmp_path)
    model = language.load(folder, tiny_models.SETTINGS, "cpu").double()
    hook = Hook(module="model.layers.1")
    weight = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    text, zero = torch.tensor([[3, 7, 5]]), torch.zeros(1, dtype=torch.long)
    for position in ("last", "any", 1):
        objective = Objective(model, "x", hook, Readout(weight, torch.zeros(1)), 1, position)
        gradient = objective.gradients(text, zero)[0, 0]
        embedded, step = objective.embeddings[text], torch.zeros(1, 3, 16)
        step[0, 0, 4] = 1e-2
        difference = objective.soft_scores(embedded + step, zero) - objective.soft_scores(embedded - step, zero)
        assert float(difference) / 2e-2 == pytest.approx(float(gradient[4]), rel=2e-2, abs=1e-4)
        every = [float(objective.scores(text[:, : i + 1], zero)) for i in range(3)] if position == "last" else None
        if every:
            assert float(Objective(model, "x", hook, objective.readout, 1, "any").scores(text, zero)) == pytest.approx(
                max(every), rel=1e-4
            )
    with pytest.raises(ValueError, match="position: 5 is outside a text of 3 tokens"):
        Objective(model, "x", hook, objective.readout, 1, 5).scores(text, zero)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_readout_is_the_activation_where_a_latent_fires(architecture):
    sae = random_sae(architecture, d_in=8, d_sae=32, dtype=torch.float32)
    x = 3 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    readout = Readout.of(sae, torch.arange(32))
    z, scores = sae.encode(x), x @ readout.weight.T + readout.bias
    assert (z > 0).any()
    torch.testing.assert_close(scores[z > 0], z[z > 0], rtol=1e-4, atol=1e-4)


def test_text_that_a_user_pastes_is_what_is_measured(data_dir):
    folder = data_dir / "models/tinystories-llama-3m"
    tokens = language.load_tokenizer(folder, tiny_models.SETTINGS)
    model = language.load(folder, tiny_models.SETTINGS, "cpu")
    vocabulary = Vocabulary(tokens, 4096)
    whole, pieces = tokens.encode(["Once upon a time"])[0], tokens.encode(["Onc"])[0] + tokens.encode(["e"])[0][-1:]
    broken = [*tokens.encode(["O"])[0], *tokens.tokenizer.convert_tokens_to_ids(["n", "c", "e"])]
    assert vocabulary.survive(torch.tensor([whole])).tolist() == [True]
    assert vocabulary.text(broken) == "Once"
    assert vocabulary.survive(torch.tensor([broken])).tolist() == [False]
    readout = Readout(torch.randn(1, 192, generator=torch.Generator().manual_seed(0)), torch.zeros(1))
    objective = Objective(model, "x", Hook(module="model.layers.2"), readout, tokens.start)
    found = measures.measure(objective, vocabulary, [whole, broken, pieces], [0, 0, 0], torch.tensor([2.0]))
    assert [m.survived for m in found][:2] == [True, False]
    assert found[1].token_ids == tokens.encode(["Once"])[0]
    assert found[1].score == pytest.approx(
        float(objective.scores(torch.tensor([found[1].token_ids]), torch.zeros(1, dtype=torch.long))), rel=1e-4
    )
    assert found[0].ratio == pytest.approx(found[0].score / 2)
    assert "".join(found[0].tokens).strip() == "Once upon a time"
    assert len(found[0].profile) == len(found[0].token_ids)
    assert found[0].profile[-1] == pytest.approx(found[0].score, rel=1e-4)
    drawn = vocabulary.random(50, 8, torch.Generator().manual_seed(0))
    assert vocabulary.survive(drawn).all()
    assert tokens.tokenizer.pad_token_id in (None, *tokens.tokenizer.all_special_ids)
    assert not vocabulary.allowed[tokens.tokenizer.all_special_ids].any()


def test_a_feature_that_never_fires_has_no_ratio(planted):
    objective, vocabulary, maximisers, _ = planted
    found = measures.measure(objective, vocabulary, maximisers[:1].tolist(), [0], torch.zeros(N_PLANTED))
    assert found[0].ratio is None
    assert found[0].survived


def test_diversity_is_over_the_good_solutions_alone():
    sequences, scores = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [9, 9, 9, 9]]), torch.tensor([1.0, 0.95, 0.2])
    assert measures.diversity(sequences, scores) == 0.25
    assert measures.diversity(sequences[1:], scores[1:]) is None


def test_robustness_tells_how_much_is_left_behind_other_text(planted):
    objective, _, maximisers, _ = planted
    contexts = torch.tensor([[5, 6, 7]])
    got = measures.robustness(objective, maximisers, torch.arange(N_PLANTED), contexts)
    joined = torch.cat([contexts.expand(N_PLANTED, -1), maximisers], 1)
    scores = objective.all_scores(joined).diagonal() / objective.all_scores(maximisers).diagonal()
    torch.testing.assert_close(got, scores, rtol=1e-4, atol=1e-4)


@pytest.fixture
def drawn():
    """Neighbours of two rows: tokens that promise much are 90 to 97, those of the data 80 to 87, any others 50."""
    tokens = torch.arange(8).expand(2, 8)
    promising = (90 + torch.arange(8))[None, :, None].expand(2, 8, 1)
    windows = (80 + torch.arange(8))[None].clone()
    windows[0, :3] = candidates.NONE
    generator = torch.Generator().manual_seed(0)
    return tokens, candidates.neighbours(tokens, promising, windows, torch.tensor([50]), 2000, generator)


def test_neighbours_change_one_or_two_tokens_or_move_one(drawn):
    tokens, found = drawn
    moved = (found.sort(-1).values == torch.arange(8)).all(-1)
    changed = (found != tokens[:, None]).sum(-1)
    assert set(changed[~moved].tolist()) == {1, 2}
    assert 0.02 < moved.double().mean() < 0.06


def test_neighbours_put_tokens_of_a_gradient_and_of_the_data_where_they_belong(drawn):
    tokens, found = drawn
    new = found[(found != tokens[:, None]) & (found >= 50)]
    place = torch.arange(8).expand_as(found)[(found != tokens[:, None]) & (found >= 50)]
    guided, data = new >= 90, (new >= 80) & (new < 90)
    assert (new[guided] == 90 + place[guided]).all()
    assert (new[data] == 80 + place[data]).all()
    assert place[data].min() == 3  # where a window has no token, any is put
    assert 0.45 < guided.double().mean() < 0.55
    assert 0.11 < data.double().mean() < 0.20


def test_improvements_at_distinct_places_are_put_together_the_best_first():
    current = torch.zeros(5, dtype=torch.long)
    better = torch.tensor([[1, 0, 0, 0, 0], [2, 3, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 5, 0, 0], [0, 0, 0, 6, 0]])
    assert candidates.merged(current, better, 3).tolist() == [[1, 4, 0, 0, 0], [1, 4, 5, 0, 0]]
    assert candidates.merged(current, better[:2], 3).shape == (0, 5)
    assert candidates.merged(current, better[:0], 3).shape == (0, 5)


def test_candidates_are_tried_once_and_never_what_there_is(words):
    vocabulary = Vocabulary(words, len(words.tokenizer))
    current = vocabulary.ids[:3].expand(2, 3)
    one, two = current[0].clone(), current[0].clone()
    one[0], two[1] = vocabulary.ids[5], vocabulary.ids[6]
    drawn = torch.stack([torch.stack([current[0], one, one, two]), torch.stack([two, one, two, current[0]])])
    kept, rows = candidates.distinct(drawn, current, vocabulary, 2)
    assert kept.tolist() == [one.tolist(), two.tolist(), two.tolist(), one.tolist()]
    assert rows.tolist() == [0, 0, 1, 1]
    assert candidates.distinct(drawn, current, vocabulary, 1)[1].tolist() == [0, 1]


class Beginnings(nn.Module):
    """One state per place: 1 if the text has one token, else 0."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.embed, self.mixed, self.config = nn.Embedding(n_rows, 2), nn.Identity(), SimpleNamespace()
        self.requires_grad_(False)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, use_cache=False):
        states = torch.full((*input_ids.shape, 2), float(input_ids.shape[1] == 1))
        states[..., 1] = 1.0
        return SimpleNamespace(logits=self.mixed(states) @ self.embed.weight.T)


def test_a_feature_that_fires_at_the_start_of_a_text_gets_a_short_one(words):
    vocabulary, model = Vocabulary(words, len(words.tokenizer)), Beginnings(len(words.tokenizer))
    ids = vocabulary.ids.tolist()
    readout = Readout(torch.eye(2), torch.zeros(2))
    objective = Objective(model, "mixed", Hook(module="mixed"), readout, start=None)
    windows = [[ids[:1], ids[:8]], [ids[:8], ids[2:4]]]
    crops = baselines.best_crops(objective, vocabulary, windows, 8, seed=0)
    # The first fires in texts of one token alone, the second everywhere.
    assert crops.lengths == [1, 8]
    assert crops.best == [ids[:1], ids[:8]]
    # Two windows at lengths 8, 4, 2 and 1; the single token is a crop once and stands behind random text thrice.
    assert crops.spent.tolist() == [8, 8]
    assert objective.cost.forward == 16
    nothing = baselines.best_crops(objective, vocabulary, [[], []], 8, seed=0)
    assert (nothing.best, nothing.lengths) == ([[], []], [8, 8])


def test_a_feature_whose_windows_are_short_gets_a_long_text_if_one_drives_it(words):
    vocabulary, model = Vocabulary(words, len(words.tokenizer)), Beginnings(len(words.tokenizer))
    ids = vocabulary.ids.tolist()
    objective = Objective(model, "mixed", Hook(module="mixed"), Readout(torch.eye(2), torch.zeros(2)), start=None)
    crops = baselines.best_crops(objective, vocabulary, [[ids[:1]], [ids[:3]]], 8, seed=0)
    assert crops.lengths == [1, 8]
    assert crops.best == [ids[:1], ids[1:3]]


@pytest.mark.parametrize("name", ["gemma", "gemma3", "bloom", "gemma3n", "deepseek_v4"])
def test_models_that_read_more_of_a_token_than_its_embedding_are_refused(name):
    kind, own, *_ = (language_families.FAMILIES | language_families.OTHERS)[name]
    model, place = language_families.build(kind, **own), "lm_head"
    readout = Readout(torch.randn(2, 32), torch.zeros(2))
    objective = Objective(model, place, Hook(module=place, side="input"), readout, start=1)
    if name in language_families.FAMILIES:
        objective.check()
    else:
        with pytest.raises(ObjectiveError, match="at lm_head depends on more than the embeddings of tokens"):
            objective.check()


def test_windows_end_at_the_end_of_a_text():
    assert baselines.aligned([[1, 2, 3], [4]], 2).tolist() == [[2, 3], [candidates.NONE, 4]]
    assert baselines.aligned([], 2).shape == (0, 2)


def test_a_byte_is_text_where_it_has_no_other_token():
    pieces = ["<unk>", "a", "b", "<0x0A>", "<0x61>", "<0xE2>", "<0x07>"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    inner.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    tokens = language.Tokens(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"), None)
    vocabulary = Vocabulary(tokens, len(pieces))
    # Not the byte of "a", nor the first of a longer character, nor one that no key types.
    assert [pieces[i] for i in vocabulary.ids] == ["a", "b", "<0x0A>"]
    assert vocabulary.can_type([1, 3, 2])


def test_a_tokenizer_without_text_is_refused():
    with pytest.raises(VocabularyError, match="can be typed"):
        Vocabulary(word_tokenizer([""], 10), 2)
