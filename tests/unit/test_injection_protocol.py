"""The protocol of injection: who may know what, how thresholds are set, what is measured, and when."""

import dataclasses
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from random_saes import random_sae
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from torch import nn

from saeflow.config.images import Data
from saeflow.config.injection import METHODS, SAE_METHODS, Distillation, Injection
from saeflow.datasets import images
from saeflow.datasets.doodles import doodles, fragments
from saeflow.datasets.images import ImageSplit
from saeflow.injection import captured, heads, metrics, study
from saeflow.injection.calibration import calibrated_shifts, shifted
from saeflow.injection.forward import Forward
from saeflow.injection.knowledge import (
    ORACLE,
    SIBLINGS,
    T0,
    T1,
    T1_PLUS,
    T2,
    T3,
    B,
    Knowledge,
    KnowledgeError,
    tier_name,
)
from saeflow.injection.materials import Materials
from saeflow.injection.method import Method, Stage, method
from saeflow.injection.methods import dreamt_images
from saeflow.injection.methods.distillation import balanced
from saeflow.injection.networks import Gate, Grafted, Head, multiply_adds, n_parameters
from saeflow.injection.protocol import Guard
from saeflow.injection.task import Task
from saeflow.models.classifiers import StackedClassifier

TASK = Task((0, 1, 2, 3), (2, 3, 4, 5), concept=4, lookalike=5, n_classes=10)
SETTINGS = Injection(
    concept=4,
    lookalike=5,
    synthetic_images=300,
    few_shots=(1, 3),
    bootstrap=50,
    distillation=Distillation(hidden=16, steps=5, fragments=300, own_images=100),
)
MINE = (
    "references",
    "ridge_regression",
    "relative_representations",
    "dreamt_images",
    "whole_model_distillation",
    "doodle_regression",
    "fragment_distillation",
)


def network(architecture="SimpleNN", seed=0, n_members=2):
    return StackedClassifier(architecture, (8, 8), 10, n_members).initialize(range(seed, seed + n_members))


@pytest.fixture(scope="module")
def data():
    return images.build(Data(calibration_share=0.2))


@pytest.fixture
def materials(data):
    stacks = {
        role: {name: network(name, 10 * i).requires_grad_(False) for name in ("SimpleNN", "FFN")}
        for i, role in enumerate(("source", "target", "blind"))
    }
    return Materials(TASK, data.train, SETTINGS, 0, networks=stacks)


def guarded(materials, allowed, **more):
    source, target = materials.pair(("SimpleNN", "FFN"))
    return Guard(materials, allowed, asker="somebody", source=source, target=target, **more)


# Knowledge


ASKS = {
    Knowledge.SHARED: lambda guard: guard.shared(),
    Knowledge.OWN: lambda guard: guard.own(),
    Knowledge.SYNTHETIC: lambda guard: (
        guard.synthetic(),
        guard.fragments(),
        guard.counted(guard.synthetic()),
        guard.noise(2),
    ),
    Knowledge.OTHERS: lambda guard: guard.others(),
    Knowledge.SOURCE: lambda guard: guard.source_activations("last.pre"),
    Knowledge.SIBLINGS: lambda guard: guard.siblings("source"),
    Knowledge.LABELLED: lambda guard: (guard.labelled(), guard.source_images()),
}


@pytest.mark.parametrize("asked", ASKS, ids=lambda asked: asked.name)
def test_a_permission_opens_its_own_door_and_no_other(materials, asked):
    ASKS[asked](guarded(materials, asked))
    with pytest.raises(KnowledgeError, match=r"somebody: asks for .*, but declares tier"):
        ASKS[asked](guarded(materials, ~asked))


@pytest.mark.parametrize(("of", "needed"), [("source", Knowledge.SOURCE), ("target", Knowledge.OWN)])
def test_saes_need_what_they_were_trained_on(materials, of, needed):
    spaces = SETTINGS.concept_spaces
    key = (of, {"source": "SimpleNN", "target": "FFN"}[of], spaces.d_sae, spaces.k)
    materials.concept_saes = {key: [random_sae("topk", 32, 64)]}
    assert guarded(materials, needed).concept_saes(of) is materials.concept_saes[key]
    with pytest.raises(KnowledgeError):
        guarded(materials, ~needed).concept_saes(of)


def test_every_door_of_the_guard_is_in_this_test():
    open_to_all = {
        "task",
        "settings",
        "device",
        "seed",
        "generator",
        "activations",
        "source_of",
        "once",
        "once_for_pair",
    }
    doors = {name for name in vars(Guard) if not name.startswith("_")} - open_to_all
    named = {
        "shared",
        "own",
        "synthetic",
        "fragments",
        "counted",
        "noise",
        "others",
        "source_activations",
        "siblings",
        "labelled",
        "source_images",
    }
    assert doors == named | {"concept_saes"}


def test_tiers_are_named_by_the_lowest_rung_that_covers_them():
    named = {T0: "T0", T1: "T1", T1_PLUS: "T1+", T2: "T2", T3: "T3", ORACLE: "oracle", T1 | B: "T1 & B"}
    named |= {B: "T0 & B", T1_PLUS | B | SIBLINGS: "T1+ & B & N", Knowledge.SYNTHETIC: "T2", Knowledge.OTHERS: "T3"}
    assert {knowledge: tier_name(knowledge) for knowledge in named} == named


def test_what_the_guard_gives_is_what_it_says(materials, data):
    guard = guarded(materials, ORACLE)
    for labelled, classes in ((guard.shared(), {2, 3}), (guard.own(), {0, 1, 2, 3}), (guard.labelled(), {4})):
        assert set(labelled.labels.tolist()) == classes
        expected = data.train.inputs()[np.isin(data.train.labels, list(classes))]
        np.testing.assert_array_equal(labelled.images.numpy(), expected)
    assert len(guard.others()) == np.isin(data.train.labels, [6, 7, 8, 9]).sum()
    assert len(guard.labelled(3).labels) == 3
    few, more = (guard.labelled(n).images for n in (1, 3))
    assert torch.equal(few, more[:1])


def test_source_activations_are_the_source_s_own_and_cannot_be_matched_with_images(materials, data):
    guard = guarded(materials, B)
    values, labels = guard.source_activations("last.pre")
    assert labels.tolist() == sorted(labels.tolist())
    seen = np.isin(data.train.labels, TASK.source_classes)
    source = materials.networks["source"]["SimpleNN"]
    direct = source.values(torch.from_numpy(data.train.inputs()[seen]), ("last.pre",))["last.pre"]
    in_order = direct[:, torch.from_numpy(data.train.labels[seen]).argsort(stable=True)]
    assert not torch.equal(values, in_order)
    for label in TASK.source_classes:
        mine = values[0, labels == label].sort(0).values
        torch.testing.assert_close(mine, direct[0, data.train.labels[seen] == label].sort(0).values)


def test_no_method_is_given_a_calibration_or_test_image(materials, data):
    given = {row.tobytes() for row in materials.labelled.images.numpy()}
    repeated = {row.tobytes() for row in data.train.inputs()}
    held = [row.tobytes() for split in (data.calibration, data.test) for row in split.inputs()]
    assert given == repeated
    assert sum(row in given for row in held) <= 1  # the digits have hardly an image twice


class Recorded(Guard):
    """Notes what is asked for."""

    def _need(self, permission, what):
        self.used = getattr(self, "used", T0) | permission
        super()._need(permission, what)


@pytest.mark.parametrize("name", MINE)
def test_a_method_declares_what_it_asks_for_and_is_refused_with_less(materials, name):
    source, target = materials.pair(("SimpleNN", "SimpleNN"))
    for variant in method(name).variants(SETTINGS):
        guard = Recorded(materials, variant.knowledge, asker=variant.label, source=source, target=target)
        variant.inject(source, target, guard)
        used = getattr(guard, "used", T0)
        assert used in variant.knowledge
        assert tier_name(used) == variant.tier
        for bit in used:
            poorer = Guard(materials, variant.knowledge & ~bit, asker=variant.label, source=source, target=target)
            with pytest.raises(KnowledgeError, match=variant.name):
                variant.inject(source, target, poorer)


# Doodles


@pytest.mark.parametrize("size", [8, 28])
def test_doodles_are_images_as_bright_as_their_models_and_none_of_them(size, data):
    digits = torch.from_numpy(data.train.inputs()[np.isin(data.train.labels, (0, 1, 2, 3))])
    own = torch.nn.functional.interpolate(digits, (size, size))
    made = doodles(400, own, seed=1)
    assert made.shape == (400, 1, size, size)
    assert (made.min(), made.max()) >= (0, 0.5)
    assert made.max() <= 1
    assert abs(made.mean() / own.mean() - 1) < 0.35
    assert len({row.numpy().tobytes() for row in made} & {row.numpy().tobytes() for row in own}) == 0
    assert torch.equal(made, doodles(400, own, seed=1))
    assert not torch.equal(made, doodles(400, own, seed=2))


def test_fragments_keep_part_of_the_ink_of_their_models_and_are_none_of_them(data):
    own = torch.from_numpy(data.train.inputs())[np.isin(data.train.labels, TASK.target_classes)]
    made = fragments(400, own, seed=1)
    assert made.shape == (400, 1, *own.shape[-2:])
    assert 0 <= made.min() < made.max() <= 1
    assert 0.4 * own.mean() < made.mean() < own.mean()
    assert not (made.flatten(1)[:, None] == own.flatten(1)[:200]).all(-1).any()
    assert torch.equal(made, fragments(400, own, seed=1))
    assert not torch.equal(made, fragments(400, own, seed=2))


def test_rows_are_drawn_so_that_each_answer_is_as_frequent():
    answers, counted = torch.tensor([[0, 0, 0, 2], [1, 0, 2, 1]]), torch.tensor([[1.0, 1, 0, 1], [1, 1, 1, 1]])
    shares = balanced(answers, counted)
    torch.testing.assert_close(shares, torch.tensor([[1 / 4, 1 / 4, 0, 1 / 2], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]))


def test_doodles_do_not_depend_on_images_of_other_classes(data):
    """The guard's doodles come from the target's own classes alone."""
    blank = ImageSplit(data.train.images.copy(), data.train.labels)
    blank.images[~np.isin(blank.labels, TASK.target_classes)] = 0
    first, second = (Materials(TASK, split, SETTINGS, 0).doodles for split in (data.train, blank))
    assert torch.equal(first, second)


# Calibration


@pytest.mark.parametrize("keep", [0.9, 0.985, 0.999])
def test_the_shift_is_the_largest_that_keeps_the_share(keep):
    logits = torch.randn(3, 500, 6, generator=torch.Generator().manual_seed(0))
    shifts = calibrated_shifts(logits, (5,), keep)
    margins = logits[..., :5].max(-1).values - logits[..., 5]
    for i in range(3):
        kept = (shifted(logits, shifts)[i].argmax(-1) != 5).double().mean()
        beyond = margins[i][margins[i] > shifts[5][i]].min() + 1e-4
        more = (shifted(logits, {5: beyond.expand(3)})[i].argmax(-1) != 5).double().mean()
        assert more < keep <= kept


def test_several_concepts_share_the_loss_and_a_bound_holds():
    logits = torch.randn(2, 800, 6, generator=torch.Generator().manual_seed(0))
    kept = (shifted(logits, calibrated_shifts(logits, (4, 5), 0.9)).argmax(-1) < 4).double().mean(-1)
    assert (kept >= 0.9).all()
    assert (kept < 0.95).all()
    assert calibrated_shifts(logits, (5,), 0.5, largest=-7.0)[5].tolist() == [-7.0, -7.0]


# Metrics


def test_outcomes_are_shares_of_their_own_classes():
    labels = torch.tensor([0, 0, 3, 4, 4, 5, 8])
    answers = torch.tensor([[0, 4, 3, 4, 0, 4, 4]])
    logits = torch.nn.functional.one_hot(answers, 10).float()
    shares = {name: share.item() for name, share in metrics.Outcomes(labels, TASK).shares(logits).items()}
    assert shares == {"transfer": 0.5, "preservation": 2 / 3, "specificity": 1.0, "unseen_rate": 1.0}


def test_auroc_is_scikit_learn_s_ties_included():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(6, (2, 90), generator=generator).float()
    positive, negative = scores[:, :30], scores[:, 30:]
    truth = [1] * 30 + [0] * 60
    expected = [roc_auc_score(truth, row) for row in scores]
    np.testing.assert_allclose(metrics.auroc(positive, negative), expected)


def test_the_bootstrap_interval_covers_the_spread_of_seeds_and_of_images():
    generator = torch.Generator().manual_seed(0)
    images_only = (torch.rand(1, 400, generator=generator) < 0.3).float().expand(5, -1)
    low, high = metrics.bootstrap_interval(images_only, generator, n_resamples=2000)
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert abs((high - low) / 2 - half) < 0.15 * half
    seeds_too = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None].expand(-1, 400)
    assert metrics.bootstrap_interval(seeds_too, generator, n_resamples=500) == (0.0, 1.0)


# Heads


def test_ridge_is_scikit_learn_s_with_weights():
    rng = np.random.default_rng(0)
    h, y, weights = rng.normal(size=(2, 60, 5)), rng.normal(size=(2, 60)), rng.random((2, 60))
    tensors = [torch.from_numpy(x).float() for x in (h, y, weights)]
    weight, bias = heads.ridge(tensors[0], tensors[1], strength=0.3, weights=tensors[2])
    for i in range(2):
        share = weights[i] / weights[i].sum()
        centred = h[i] - share @ h[i]
        alpha = 0.3 * (share @ centred**2).mean()
        expected = Ridge(alpha=alpha).fit(h[i], y[i], sample_weight=share)
        np.testing.assert_allclose(weight[i, :, 0], expected.coef_, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias[i, 0], expected.intercept_, rtol=1e-4, atol=1e-6)


def test_logistic_regression_is_scikit_learn_s():
    rng = np.random.default_rng(1)
    h = rng.normal(size=(1, 300, 4)) * [1, 2, 0.5, 1] + 3
    y = (h[0] @ [1, -1, 0.5, 0] + rng.normal(size=300) > 2.0).astype(float)
    fitted = heads.logistic(torch.from_numpy(h).float(), torch.from_numpy(y)[None].float(), strength=1e-2, steps=2000)
    scale = h[0].var(0, ddof=1).mean() ** -0.5
    x = (h[0] - h[0].mean(0)) * scale
    expected = LogisticRegression(C=1 / (1e-2 * 300), tol=1e-8, max_iter=10_000).fit(x, y).decision_function(x)
    np.testing.assert_allclose(Head(fitted)(torch.from_numpy(h).float())[0], expected, atol=2e-3)


def test_a_head_of_narrowed_values_reads_the_values_themselves():
    generator = torch.Generator().manual_seed(0)
    h, weight = torch.randn(2, 50, 600, generator=generator), torch.randn(2, 512, 1, generator=generator)
    narrow, directions = heads.narrowed([h[:, :20], h[:, 20:]], generator)
    torch.testing.assert_close(narrow @ weight, h @ heads.widened(weight, directions), atol=1e-3, rtol=1e-3)
    as_they_are, none = heads.narrowed([h[..., :512]], generator)
    assert none is None
    assert torch.equal(heads.widened(weight, none), weight)
    assert torch.equal(as_they_are, h[..., :512])


def test_whitened_values_have_covariance_one():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 6, 6, generator=generator)
    h = torch.randn(2, 4000, 6, generator=generator) @ mix + 5
    weight, bias = heads.whitening(h, floor=0.0)
    white = torch.baddbmm(bias[:, None], h, weight)
    covariance = white.mT @ white / 4000
    torch.testing.assert_close(covariance, torch.eye(6).expand(2, 6, 6), atol=2e-3, rtol=0)


def test_directions_without_variance_are_left_out_of_whitened_values_and_cost_nothing():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(2, 500, 3, generator=generator)
    h = flat @ torch.randn(2, 3, 40, generator=generator) + 5
    white = heads.Whitened.of([h], generator)
    assert white.values.shape == (2, 500, 3)
    assert white.width == 40
    covariance = white.values.mT @ white.values / 500
    torch.testing.assert_close(covariance, torch.eye(3).expand(2, 3, 3), atol=2e-3, rtol=0)
    p = flat[..., 0].sigmoid()
    settings = {"weights": torch.ones_like(p[None]), "hidden": 16, "steps": 50, "batch_size": 32}
    padded = {name: nn.functional.pad(getattr(white, name), (37, 0)) for name in ("values", "weight", "bias")}
    (few,), (all_of_them,) = (
        heads.distil(one, p[None], **settings, generator=torch.Generator().manual_seed(1))
        for one in (white, dataclasses.replace(white, **padded))
    )
    torch.testing.assert_close(few(h), all_of_them(h), atol=1e-4, rtol=1e-4)


def test_distillation_steps_as_autograd_and_adamw_would():
    generator = torch.Generator().manual_seed(0)
    white = heads.Whitened.of([torch.randn(2, 300, 5, generator=generator)], generator)
    p, weights = torch.rand(3, 2, 300, generator=generator), torch.rand(3, 2, 300, generator=generator)
    settings = {"hidden": 16, "steps": 20, "batch_size": 32}
    found = heads.distil(white, p, weights=weights, **settings, generator=torch.Generator().manual_seed(1))

    draw = torch.Generator().manual_seed(1)
    start = [
        math.sqrt(2 / 5) * torch.randn(5, 16, generator=draw),
        torch.zeros(16),
        math.sqrt(1 / 16) * torch.randn(16, 1, generator=draw),
        torch.zeros(1),
    ]
    quantiles = torch.rand(20, 32, generator=draw, dtype=torch.float64)
    for source, member in itertools.product(range(3), range(2)):
        first, first_bias, last, last_bias = parameters = [nn.Parameter(value.clone()) for value in start]
        optimizer = torch.optim.AdamW(parameters, lr=heads._LEARNING_RATE, weight_decay=heads._WEIGHT_DECAY)
        cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / 20)) / 2)
        shares = weights[source, member].double().cumsum(0)
        for of_step in quantiles:
            rows = torch.searchsorted(shares, (1 - of_step) * shares[-1])
            s = (white.values[member, rows] @ first + first_bias).relu() @ last + last_bias
            loss = nn.functional.binary_cross_entropy_with_logits(s[:, 0], p[source, member, rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
        head = found[source]
        torch.testing.assert_close(head.weights[1][member], last.detach(), atol=1e-5, rtol=1e-4)
        folded = white.weight[member] @ first.detach()
        torch.testing.assert_close(head.weights[0][member], folded, atol=1e-5, rtol=1e-4)


def test_distillation_learns_soft_answers_and_members_do_not_meet():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 2000, 3, generator=generator) * torch.tensor([1.0, 0.01, 1.0])
    p = (300 * h[..., 1] * h[..., 2].sign()).sigmoid()
    settings = {"hidden": 32, "steps": 800, "batch_size": 100}

    def fit(members):
        draw = torch.Generator().manual_seed(1)
        white = heads.Whitened.of([h[members]], draw)
        answers = p[None, members]
        return heads.distil(white, answers, weights=torch.ones_like(answers), **settings, generator=draw)[0]

    both, second = fit([0, 1]), fit([1])
    learned = both(h).sigmoid()
    assert (learned - p).abs().mean() < 0.1 < (p - p.mean()).abs().mean() / 3
    torch.testing.assert_close(both(h)[1:], second(h[1:]), atol=1e-4, rtol=1e-4)


# Networks


def test_a_graft_changes_the_concept_s_logit_alone_and_its_cost_is_counted():
    target = network()
    x = torch.rand(7, 1, 8, 8)
    torch.manual_seed(0)
    layers = (torch.randn(2, 32, 5), torch.randn(2, 5)), (torch.randn(2, 5, 1), torch.randn(2, 1))
    injected = Grafted(target, "last.pre", {4: Gate(Head(*layers))})
    h = target.values(x, ("last.pre",))["last.pre"]
    score = ((h @ layers[0][0] + layers[0][1][:, None]).relu() @ layers[1][0] + layers[1][1][:, None])[..., 0]
    expected = target(x).clone()
    expected[..., 4] = 1000 * score
    torch.testing.assert_close(injected(x), expected, rtol=1e-5, atol=2e-3)
    assert n_parameters(injected, 2) - n_parameters(target, 2) == 32 * 5 + 5 + 5 + 1
    assert multiply_adds(injected, (8, 8)) - multiply_adds(target, (8, 8)) == 32 * 5 + 5
    assert multiply_adds(target, (8, 8)) == 64 * 64 + 64 * 32 + 32 * 10


@pytest.mark.parametrize("name", MINE)
def test_multiply_adds_are_those_that_torch_counts(materials, name):
    from torch.utils.flop_counter import FlopCounterMode

    for variant in method(name).variants(SETTINGS):
        source, target = materials.pair(("SimpleNN", "SimpleNN"))
        guard = Guard(materials, variant.knowledge, asker=variant.label, source=source, target=target)
        injected = variant.inject(source, target, guard)
        with FlopCounterMode(display=False) as counter:
            injected(torch.zeros(1, 1, 8, 8))
        assert multiply_adds(injected, (8, 8)) == counter.get_total_flops() // 4


# The study


class Watched(ImageSplit):
    """A split that counts how often it is read, and what was injected by then."""

    def inputs(self):
        Watched.log.append("test")
        return super().inputs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logged(Method):
    """Says when it injects."""

    name = "logged"
    family = "baseline"

    @classmethod
    def variants(cls, settings):
        return [cls(knowledge=T0, site="logits")]

    def inject(self, source, target, guard):
        Watched.log.append("inject")
        return target


def test_the_test_split_is_read_once_after_everything_is_injected(materials, data):
    Watched.log = []
    watched = Watched(data.test.images, data.test.labels)
    study.run(Logged.variants(SETTINGS), materials, data.calibration, watched, [("SimpleNN", "FFN")], (0, 1))
    assert Watched.log == ["inject"] * 4 + ["test"]


def test_a_study_measures_what_a_loop_over_images_measures(materials, data):
    pairs = list(itertools.product(("SimpleNN", "FFN"), repeat=2))
    variants = method("doodle_regression").variants(SETTINGS)[:1]
    results = study.run(variants, materials, data.calibration, data.test, pairs, (7, 9))
    measures = results.measures.to_pandas()
    assert len(measures) == 5 * 4 * 2
    assert set(measures.control) == {"", *Method.controls, "no_lookalike_inputs"}
    assert len(results.curve) == 4 * 2 * len(study.GAMMAS)
    confusion, examples = results.confusion.to_pandas(), results.examples.to_pandas()
    assert confusion["n"].sum() == 4 * 2 * len(data.test.labels)
    own_row = measures.query("control == ''")
    taken = confusion.query("label == @TASK.concept")
    np.testing.assert_allclose(taken.query("after == @TASK.concept").n.sum() / taken.n.sum(), own_row.transfer.mean())
    before = confusion[confusion.label.isin(TASK.target_classes)]
    np.testing.assert_allclose(
        before.query("before == label").n.sum() / before.n.sum(), own_row.own_accuracy.mean(), rtol=1e-6
    )
    assert set(examples.kind) >= {"won", "missed"}
    assert (examples.label == data.test.labels[examples.image]).all()
    assert ((examples.label == TASK.concept) == (examples.kind != "taken")).all()
    assert examples[examples.kind == "won"].share.is_monotonic_decreasing
    assert examples[examples.kind == "missed"].share.is_monotonic_increasing
    row = measures.query("control == '' and source == 'FFN' and target == 'SimpleNN' and seed == 9").iloc[0]
    source, target = materials.pair(("FFN", "SimpleNN"))
    guard = Guard(materials, T2, asker=variants[0].label, source=source, target=target)
    network = variants[0].inject(source, target, guard)
    own = study.Images.of(data.calibration, "cpu", TASK.target_classes)
    shifts = calibrated_shifts(network(own.images), (4,), SETTINGS.preservation)
    answers = shifted(network(torch.from_numpy(data.test.inputs())), shifts)[1].argmax(-1).numpy()
    assert row.transfer == (answers[data.test.labels == 4] == 4).mean()
    assert row.specificity == (answers[data.test.labels == 5] == 4).mean()
    interval = results.intervals.to_pandas().query("control == '' and metric == 'transfer'").iloc[0]
    measured = measures.query("control == ''").transfer
    assert interval["mean"] == pytest.approx(measured.mean())
    assert interval.low <= interval["mean"] <= interval.high


def test_values_run_once_for_all_methods_are_those_that_each_would_run_itself(materials, data, tmp_path, monkeypatch):
    answered = study.Images.of(data.calibration, "cpu", TASK.target_classes), study.Images.of(data.test, "cpu")
    values = tmp_path / "values.safetensors"
    captured.save(materials, *(split.images for split in answered), values)
    pairs = list(itertools.product(("SimpleNN", "FFN"), repeat=2))
    found, ran = [], []
    run_network = Forward._run
    monkeypatch.setattr(Forward, "_run", lambda *given: ran.append(len(given[2])) or run_network(*given))
    for given in (materials, dataclasses.replace(materials, values=values)):
        ran.clear()
        results = study.run(
            method("neural_aligner").variants(SETTINGS), given, data.calibration, data.test, pairs, (7, 9)
        )
        found.append([table.to_pandas() for table in results[:-1]])
    assert all(alone.equals(read) for alone, read in zip(*found, strict=True))
    # What is left to run: images of the shared classes, and the concept's test images with noise.
    n_noisy = int((data.test.labels == TASK.concept).sum())
    assert set(ran) == {len(materials.images_of(TASK.shared).labels), n_noisy}


def test_a_method_without_source_is_run_once_for_a_target_and_stands_for_all_its_pairs(materials, data):
    pairs = [("SimpleNN", "FFN"), ("FFN", "FFN")]
    probe = [v for v in method("references").variants(SETTINGS) if v.variant == "3 shots, penultimate"]
    measures = study.run(probe, materials, data.calibration, data.test, pairs, (0, 1)).measures.to_pandas()
    of_pair = [measures.query("source == @source").drop(columns="source").reset_index(drop=True) for source, _ in pairs]
    assert len(of_pair[0]) == 2 * 2
    assert of_pair[0].equals(of_pair[1])


def injected_alone(materials, variant, control, pair):
    asked = study.Asked.of(variant, control, pair, materials)
    return variant.inject(asked.source, asked.target, asked.guard)


@pytest.mark.parametrize("at_once", [1, 1 << 30])
def test_heads_of_all_sources_and_controls_together_are_those_of_each_alone(materials, data, monkeypatch, at_once):
    monkeypatch.setattr(heads, "_LARGEST_BATCH", at_once)
    penultimate, _, even_odds = method("fragment_distillation").variants(SETTINGS)
    pairs = [(source, "FFN") for source in ("SimpleNN", "FFN")]
    controls = ("", *penultimate.controls)
    asked = [study.Asked.of(penultimate, control, pair, materials) for control in controls for pair in pairs]
    for target in {job.target for job in asked}:
        same = [job for job in asked if job.target is target]
        penultimate.prepare([job.source for job in same], target, [job.guard for job in same])
    together = [penultimate.inject(job.source, job.target, job.guard) for job in asked]
    x = torch.from_numpy(data.test.inputs())
    raised = together[0].heads["4"].score.biases[-1]
    of_even_odds = injected_alone(materials, even_odds, "", pairs[0]).heads["4"].score
    torch.testing.assert_close(raised, of_even_odds.biases[-1] + math.log(len(TASK.source_classes) - 1))
    assert torch.equal(together[0].heads["4"].score.weights[0], of_even_odds.weights[0])
    for job, network in zip(asked, together, strict=True):
        materials.remembered.clear()
        assert torch.equal(network(x), injected_alone(materials, penultimate, job.control, job.pair)(x))
    assert len({network.heads["4"].score.biases[-1][0].item() for network in together}) == len(asked)


def test_both_variants_of_dreamt_images_look_at_the_same_dreams(materials, monkeypatch):
    dreamt = []
    dream = dreamt_images.dream
    monkeypatch.setattr(dreamt_images, "dream", lambda *given: dreamt.append(1) or dream(*given))
    for variant in method("dreamt_images").variants(SETTINGS):
        injected_alone(materials, variant, "", ("FFN", "SimpleNN"))
    assert len(dreamt) == 1


def test_what_is_remembered_is_remembered_for_one_tier_only(materials):
    target = materials.networks["target"]["FFN"]
    rich, poor = guarded(materials, T2), guarded(materials, T1)
    made = rich.once(target, "doodles", lambda: rich.synthetic())
    assert rich.once(target, "doodles", lambda: None) is made
    with pytest.raises(KnowledgeError):
        poor.once(target, "doodles", lambda: poor.synthetic())


def test_what_a_pair_keeps_is_its_own_and_goes_with_either_network(materials):
    same, again = guarded(materials, T2), guarded(materials, T2)
    source, target = materials.pair(("FFN", "FFN"))
    other = Guard(materials, T2, asker="somebody", source=source, target=target)
    assert same.once_for_pair("map", lambda: 1) == again.once_for_pair("map", lambda: 2) == 1
    assert other.once_for_pair("map", lambda: 3) == 3
    assert guarded(materials, T2, drop_concept=True).once_for_pair("map", lambda: 5) == 5
    materials.forget(target)
    assert again.once_for_pair("map", lambda: 4) == 4


@pytest.mark.parametrize("name", ["adversarial_direction", "precomputed_alignment", "preserved_injection"])
def test_variants_that_share_draws_carry_the_concept_once_and_differ_in_their_heads(materials, name, monkeypatch):
    fits, once, spaces = [], Guard.once_for_pair, SETTINGS.concept_spaces
    for role in ("source", "target"):
        key = role, "SimpleNN", spaces.d_sae, spaces.k
        materials.concept_saes[key] = [random_sae("jumprelu", 32, 64, i, torch.float32) for i in range(2)]

    def counted(guard, name, make):
        return once(guard, name, lambda: fits.append(name) or make())

    monkeypatch.setattr(Guard, "once_for_pair", counted)
    sharing = [v for v in method(name).variants(SETTINGS) if v.draws == name]
    assert len(sharing) == 2
    x = materials.images_of((0, 4)).images
    pair = ("SimpleNN", "SimpleNN")
    first, second = (injected_alone(materials, variant, "", pair)(x) for variant in sharing)
    assert len(fits) == 1
    assert not torch.equal(first[..., 4], second[..., 4])
    materials.remembered.clear()
    assert torch.equal(injected_alone(materials, sharing[1], "", pair)(x), second)


def test_a_graft_is_measured_as_its_network_answers(materials, data):
    target = materials.networks["target"]["SimpleNN"]
    graft = Grafted(target, "last.pre", {4: Head((torch.randn(2, 32, 1), torch.zeros(2, 1)))})
    images = torch.from_numpy(data.test.inputs())
    torch.testing.assert_close(study.predict(graft, images, materials.forward), graft(images))


def test_controls_put_other_networks_in_place(materials):
    pair = ("SimpleNN", "FFN")
    source, target = materials.pair(pair)
    assert materials.pair(pair, "blind_source") == (materials.networks["blind"]["SimpleNN"], target)
    for side, index in (("source", 0), ("target", 1)):
        changed = materials.pair(pair, f"untrained_{side}")
        assert changed[1 - index] is (source, target)[1 - index]
        before, after = ((source, target)[index], changed[index])
        assert before.architecture == after.architecture
        assert not torch.equal(before.layers["logits"].weight, after.layers["logits"].weight)
        assert materials.pair(pair, f"untrained_{side}")[index] is after


def test_dropping_lookalike_inputs_leaves_out_what_the_source_calls_the_concept(materials):
    guard = guarded(materials, T2, drop_concept=True)
    kept = guard.counted(guard.synthetic())
    p = materials.networks["source"]["SimpleNN"](guard.synthetic()).softmax(-1)[..., 4]
    assert torch.equal(kept.bool(), p <= 0.1)
    assert 0 < kept.mean() < 1


def test_every_method_of_the_config_is_registered_under_its_name():
    for name in METHODS:
        found = method(name)
        variants = found.variants(SETTINGS)
        assert found.name == name
        assert found.__doc__
        assert variants
        assert len({variant.label for variant in variants}) == len(variants)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_reads_concept_saes_if_and_only_if_its_job_gets_them(name):
    source = inspect.getsource(inspect.getmodule(method(name)))
    reads = "concept_saes(" in source
    if reads != (name in SAE_METHODS):
        pytest.fail(f"{name} reads concept SAEs: {reads}; saeflow.config.injection.SAE_METHODS says otherwise")


@pytest.mark.parametrize("name", MINE)
def test_a_method_gives_the_same_network_twice_whatever_its_companions(materials, name):
    variant = method(name).variants(SETTINGS)[-1]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pair = ("SimpleNN", "SimpleNN")

    def answers(members):
        own = dataclasses.replace(
            materials,
            networks={
                role: {a: stack.select(members) for a, stack in stacks.items()}
                for role, stacks in materials.networks.items()
            },
        )
        source, target = own.pair(pair)
        guard = Guard(own, variant.knowledge, asker=variant.label, source=source, target=target)
        return variant.inject(source, target, guard)(x)

    both = answers([0, 1])
    assert torch.equal(both, answers([0, 1]))
    scale = both.abs().max()
    torch.testing.assert_close(both[1:] / scale, answers([1]) / scale, atol=1e-3, rtol=0)


def test_stages_are_named_and_the_default_is_one():
    assert Stage(network(), (4,)).name == ""
