"""The older injection methods: surgery against whole networks, alignments against rotations, the guard against all."""

import copy
import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from saeflow.config.images import Data, Layers
from saeflow.config.injection import METHODS, Injection
from saeflow.datasets import images
from saeflow.injection.alignment import RIDGE, Affine
from saeflow.injection.knowledge import Knowledge, KnowledgeError
from saeflow.injection.materials import Materials
from saeflow.injection.method import NotApplicableError, method
from saeflow.injection.methods import aligned_spatial_transfer as spatial
from saeflow.injection.methods import pathways, sae_injection, weight_selection
from saeflow.injection.protocol import Guard
from saeflow.injection.surgery import (
    by_unit,
    contrasted,
    edges,
    hidden_layers,
    n_units,
    permuted,
    replaced,
    transplanted,
)
from saeflow.injection.task import Task
from saeflow.models.classifiers import StackedClassifier
from saeflow.sae.architectures import JumpReLU

OLDER = [
    "direct_weight_copy",
    "procrustes_probe",
    "importance_selection",
    "gradual_blending",
    "pathway_transplant",
    "activation_selection",
    "cascade_transplant",
    "basic_sae_injection",
    "preserved_injection",
    "vector_space_aligned",
    "cross_architecture_vector",
    "aligned_spatial_transfer",
]
SETTINGS = Injection(concept=4, lookalike=5)
VARIANTS = [variant for name in OLDER for variant in method(name).variants(SETTINGS)]
TASK = Task((0, 1, 2, 3), (2, 3, 4, 5), concept=4, lookalike=5, n_classes=10)
RIVALS = [2, 3, 5]
D_SAE = 24


def network(architecture, seed, n_members=2):
    drawn = StackedClassifier(architecture, (8, 8), 10, n_members).initialize(range(seed, seed + n_members))
    with torch.no_grad():
        for i, layer in enumerate(drawn.layers.values()):
            layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=torch.Generator().manual_seed(seed + i)))
    return drawn.requires_grad_(False)


def saes(network, seed):
    generator = torch.Generator().manual_seed(seed)
    d = network.width("last.pre")

    def one():
        atoms = torch.nn.functional.normalize(torch.randn(D_SAE, d, generator=generator), dim=1)
        bias = 0.1 * torch.randn(D_SAE, generator=generator)
        threshold = 0.2 * torch.rand(D_SAE, generator=generator)
        return JumpReLU(atoms.T.clone(), atoms, bias, 0.1 * torch.randn(d, generator=generator), threshold)

    return [one() for _ in range(network.n_members)]


@functools.cache
def digits():
    return images.build(Data(name="digits")).train


def materials(source, target):
    """A study of one pair; digits as images."""
    spaces = SETTINGS.concept_spaces
    size = (spaces.d_sae, spaces.k)
    return Materials(
        TASK,
        digits(),
        SETTINGS,
        seed=7,
        networks={"source": {source.architecture: source}, "target": {target.architecture: target}},
        concept_saes={
            ("source", source.architecture, *size): saes(source, 1),
            ("target", target.architecture, *size): saes(target, 2),
        },
    )


def guard_of(variant, source, target, knowledge=None):
    allowed = variant.knowledge if knowledge is None else knowledge
    return Guard(materials(source, target), allowed, asker=variant.label, source=source, target=target)


def variant_of(name, label=""):
    return next(variant for variant in method(name).variants(SETTINGS) if variant.variant == label)


def inject(variant, source, target):
    return variant.inject(source, target, guard_of(variant, source, target))


def probe_images(n=40):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def of_class(source, target, *classes):
    return materials(source, target).images_of(classes).images


def others(logits, *without):
    return logits[..., [label for label in range(10) if label not in (4, *without)]]


# Every method


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.label)
def test_every_method_is_deterministic_and_leaves_both_networks_as_they_were(variant):
    source = network("SimpleNN", 0)
    target = network("SimpleNN" if variant.equal_architectures else "ConvNet", 10)
    before = copy.deepcopy((source.state_dict(), target.state_dict()))
    x = probe_images()
    logits = inject(variant, source, target)(x)
    assert logits.shape == (2, len(x), 10)
    assert logits.isfinite().all()
    assert not torch.equal(logits[..., 4], target(x)[..., 4])
    torch.testing.assert_close(inject(variant, source, target)(x), logits, rtol=0, atol=0)
    torch.testing.assert_close((source.state_dict(), target.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.label)
def test_a_member_s_network_does_not_depend_on_the_other_members(variant):
    source = network("SimpleNN", 0)
    target = network("SimpleNN" if variant.equal_architectures else "ConvNet", 10)
    x = probe_images()
    both = inject(variant, source, target)(x)
    study = materials(source, target)
    study.concept_saes = {key: list(found)[1:] for key, found in study.concept_saes.items()}
    pair = source.member(1), target.member(1)
    alone = variant.inject(*pair, Guard(study, variant.knowledge, asker=variant.label, source=pair[0], target=pair[1]))
    torch.testing.assert_close(alone(x)[0], both[1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.label)
def test_the_guard_refuses_without_any_one_of_the_permissions_that_a_method_declares(variant):
    source, target = network("SimpleNN", 0), network("SimpleNN", 10)
    for permission in variant.knowledge:
        guard = guard_of(variant, source, target, variant.knowledge & ~permission)
        with pytest.raises(KnowledgeError, match=variant.label):
            variant.inject(source, target, guard)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.equal_architectures], ids=lambda v: v.label)
def test_weight_surgery_does_not_apply_to_unequal_architectures(variant):
    source, target = network("SimpleNN", 0), network("DeepNN", 10)
    with pytest.raises(NotApplicableError, match="SimpleNN and DeepNN"):
        inject(variant, source, target)


def test_the_methods_that_need_equal_architectures_are_those_of_weights():
    equal = {name for name in OLDER if method(name).equal_architectures}
    assert equal == {name for name in OLDER if METHODS[name] in ("weight_selection", "pathways")}


# Surgery


@pytest.mark.parametrize("architecture", ["DeepNN", "ConvNet"])
def test_permuted_units_leave_the_function_as_it_was(architecture):
    whole = network(architecture, 0)
    generator = torch.Generator().manual_seed(5)
    orders = {
        layer: torch.stack([torch.randperm(n_units(whole, layer), generator=generator) for _ in range(2)])
        for layer in hidden_layers(whole)
    }
    x = probe_images()
    changed = permuted(whole, orders)
    torch.testing.assert_close(changed(x), whole(x), rtol=1e-4, atol=1e-5)
    for layer in hidden_layers(whole):
        name = f"{layer}.post"
        (was, now) = (net.values(x, [name])[name] for net in (whole, changed))
        moved = torch.stack(
            [by_unit(whole, layer, value).take_along_dim(orders[layer][..., None], 1) for value in was.unbind(1)], dim=1
        )
        torch.testing.assert_close(now, moved.flatten(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["SimpleNN", "ConvNet"])
def test_replacing_all_units_gives_the_source_s_logit_and_none_the_target_s_others(architecture):
    source, target, x = network(architecture, 0), network(architecture, 10), probe_images()

    def masks(value):
        return {layer: torch.full((2, n_units(target, layer)), value) for layer in hidden_layers(target)}

    torch.testing.assert_close(replaced(source, target, masks(True), 4)(x)[..., 4], source(x)[..., 4])
    torch.testing.assert_close(others(replaced(source, target, masks(False), 4)(x)), others(target(x)))


def ablated(whole, dropped, means, x):
    """Logits of a dense stack with some units' values replaced by constants, layer by layer."""
    value = x.flatten(1).expand(whole.n_members, -1, -1)
    for layer in hidden_layers(whole):
        value = whole.layers[layer](value).relu()
        constant = torch.zeros_like(value) if means is None else means[layer][:, None].expand_as(value)
        value = torch.where(dropped[layer][:, None], constant, value)
    return whole.layers["logits"](value)


@pytest.mark.parametrize("with_means", [False, True])
def test_replaced_units_are_the_source_without_its_others_and_the_target_without_them(with_means):
    source, target, x = network("DeepNN", 0), network("DeepNN", 10), probe_images()
    generator = torch.Generator().manual_seed(1)
    theirs = {
        layer: torch.rand(2, n_units(target, layer), generator=generator) < 0.4 for layer in hidden_layers(target)
    }

    def means(whole):
        names = [f"{layer}.post" for layer in hidden_layers(whole)]
        return {n.removesuffix(".post"): v.mean(1) for n, v in whole.values(x, names).items()} if with_means else None

    of_source, of_target = means(source), means(target)
    logits = replaced(source, target, theirs, 4, of_source, of_target)(x)
    kept = {layer: ~mask for layer, mask in theirs.items()}
    torch.testing.assert_close(logits[..., 4], ablated(source, kept, of_source, x)[..., 4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others(logits), others(ablated(target, theirs, of_target, x)), rtol=1e-4, atol=1e-5)


def test_the_mean_of_what_a_convolution_reads_no_more_enters_its_bias():
    # Constant maps, no padding at the only place that is looked at: the mean is exact.
    source, target = network("ConvNet", 0), network("ConvNet", 10)
    theirs = {layer: torch.zeros(2, n_units(target, layer), dtype=torch.bool) for layer in hidden_layers(target)}
    theirs["conv1"][:, 3] = True
    means = {layer: torch.ones(2, target.width(f"{layer}.post")) for layer in hidden_layers(target)}
    found = replaced(source, target, theirs, 4, target_means=means).layers["conv2"]
    before = target.layers["conv2"]
    assert not found.weight[:, :, 3].any()
    torch.testing.assert_close(found.weight[:, :, 4:], before.weight[:, :, 4:], rtol=0, atol=0)
    torch.testing.assert_close(found.bias, before.bias + before.weight[:, :, 3].sum((2, 3)))


def test_a_transplant_puts_the_best_units_in_the_first_slots():
    source, target = network("SimpleNN", 0), network("SimpleNN", 10)
    generator = torch.Generator().manual_seed(2)
    best, slots = (
        {
            layer: torch.stack([torch.randperm(n_units(target, layer), generator=generator) for _ in range(2)])
            for layer in hidden_layers(target)
        }
        for _ in range(2)
    )
    counts = {"hidden1": torch.tensor([5, 9]), "hidden2": torch.tensor([3, 1])}
    found = transplanted(source, target, best, counts, slots, 4)
    for i in range(2):
        k = counts["hidden1"][i]
        moved = found.layers["hidden1"].weight[i][:, slots["hidden1"][i, :k]]
        torch.testing.assert_close(moved, source.layers["hidden1"].weight[i][:, best["hidden1"][i, :k]])
        kept = slots["hidden1"][i, k:]
        torch.testing.assert_close(
            found.layers["hidden1"].weight[i][:, kept], target.layers["hidden1"].weight[i][:, kept]
        )
        row = found.layers["logits"].weight[i, :, 4]
        assert row.count_nonzero() == counts["hidden2"][i]


# Copies and blends


def test_copying_the_row_into_a_target_with_the_source_s_body_gives_the_source_s_logit():
    source, x = network("ConvNet", 0), probe_images()
    target = copy.deepcopy(source)
    target.layers["logits"].weight.copy_(network("ConvNet", 10).layers["logits"].weight)
    logits = inject(variant_of("direct_weight_copy"), source, target)(x)
    torch.testing.assert_close(logits[..., 4], source(x)[..., 4])
    torch.testing.assert_close(others(logits), others(target(x)))


def test_copying_the_last_layer_too_needs_only_the_body_below_to_agree():
    source, x = network("DeepNN", 0), probe_images()
    target = copy.deepcopy(source)
    for layer in ("hidden6", "logits"):
        target.layers[layer].weight.copy_(network("DeepNN", 10).layers[layer].weight)
    logits = inject(variant_of("direct_weight_copy", "last_layer"), source, target)(x)
    torch.testing.assert_close(logits[..., 4], source(x)[..., 4])


def test_half_of_the_units_are_two_networks_side_by_side():
    source, target, x = network("SimpleNN", 0), network("SimpleNN", 10), probe_images()
    logits = inject(variant_of("direct_weight_copy", "half_of_units"), source, target)(x)
    first = {layer: (torch.arange(n) < n // 2).expand(2, -1) for layer, n in (("hidden1", 64), ("hidden2", 32))}
    second = {layer: ~mask for layer, mask in first.items()}
    torch.testing.assert_close(logits[..., 4], ablated(source, first, None, x)[..., 4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others(logits), others(ablated(target, second, None, x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["DeepNN", "ConvNet"])
def test_blending_runs_from_the_target_to_the_source(architecture):
    source, target, x = network(architecture, 0), network(architecture, 10), probe_images()
    variant = variant_of("gradual_blending", "t_0_5")
    nothing = inject(dataclasses.replace(variant, t=0.0), source, target)(x)
    torch.testing.assert_close(nothing, target(x))
    everything = inject(dataclasses.replace(variant, t=1.0), source, target)
    torch.testing.assert_close(everything(x)[..., 4], source(x)[..., 4])
    half = inject(variant, source, target)
    for height, layer in enumerate(reversed(list(target.layers))):
        share = 0.5 ** (height + 1)
        mixed = (1 - share) * target.layers[layer].weight + share * source.layers[layer].weight
        rows = 4 if layer == "logits" else slice(None)
        torch.testing.assert_close(half.layers[layer].weight[..., rows], mixed[..., rows])
    torch.testing.assert_close(others(half.layers["logits"].weight), others(target.layers["logits"].weight))


def test_importance_is_weight_times_the_slope_of_the_mean_logit():
    source, target = network("SimpleNN", 0), network("SimpleNN", 10)
    variant = variant_of("importance_selection", "shared_images")
    found = weight_selection.on_shared_images(source, guard_of(variant, source, target))
    x, double = of_class(source, target, 2, 3).double(), copy.deepcopy(source).double()
    weights = double.layers["hidden2"].weight
    for i, j, k in [(0, 3, 5), (1, 60, 0), (1, 17, 31)]:
        original, ends = weights[i, j, k].item(), []
        for step in (1e-6, -1e-6):
            weights[i, j, k] = original + step
            ends.append(double(x)[i, :, 4].mean().item())
        weights[i, j, k] = original
        slope = (ends[0] - ends[1]) / 2e-6
        assert found["hidden2"][i, j * 32 + k].item() == pytest.approx(abs(original * slope), rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("architecture", ["SimpleNN", "ConvNet"])
def test_importance_from_activations_is_that_of_the_images_and_a_unit_s_mean_in_the_first_layer(architecture):
    source, target = network(architecture, 0), network(architecture, 10)
    guard = guard_of(variant_of("importance_selection"), source, target)
    found = weight_selection.on_concept(source, guard)
    traced = copy.deepcopy(source).requires_grad_(True)
    traced(of_class(source, target, 4))[..., 4].mean(1).sum().backward()
    first, *rest = hidden_layers(source)
    for layer in rest:
        weight, bias = traced.layers[layer].parameters()
        expected = torch.cat([(p * p.grad).detach().flatten(1) for p in (weight, bias)], dim=1).abs()
        torch.testing.assert_close(found[layer], expected, rtol=1e-3, atol=1e-6)
    weight, bias = traced.layers[first].parameters()
    into = (weight * weight.grad).detach()
    summed = into.sum(1) if architecture == "SimpleNN" else into.flatten(2).sum(2)
    n = weight[0].numel() // bias.shape[1] + 1
    of_units = found[first][:, -bias.shape[1] :]
    torch.testing.assert_close(of_units * n, (summed + (bias * bias.grad).detach()).abs(), rtol=1e-3, atol=1e-5)
    assert found[first].sum().item() == pytest.approx((of_units * n).sum().item(), rel=1e-4)


def test_selecting_everything_by_importance_gives_the_source_s_logit_and_a_share_copies_that_many():
    source, target, x = network("ConvNet", 0), network("ConvNet", 10), probe_images()
    variant = variant_of("importance_selection")
    whole = inject(dataclasses.replace(variant, share=1.0), source, target)
    torch.testing.assert_close(whole(x)[..., 4], source(x)[..., 4])
    some = inject(variant, source, target)
    for layer in hidden_layers(target):
        was = torch.cat([p.flatten(1) for p in target.layers[layer].parameters()], dim=1)
        now = torch.cat([p.flatten(1) for p in some.layers[layer].parameters()], dim=1)
        assert ((was != now).sum(1) == round(0.2 * was.shape[1])).all()


def test_selecting_all_units_by_activation_gives_the_source_s_contrast():
    source, target, x = network("ConvNet", 0), network("ConvNet", 10), probe_images()
    variant = dataclasses.replace(variant_of("activation_selection", "half"), share=1.0)
    logits = inject(variant, source, target)(x)
    own = source(x)
    torch.testing.assert_close(logits[..., 4], own[..., 4] - own[..., RIVALS].mean(-1), rtol=1e-4, atol=1e-4)


def test_the_selected_units_are_the_most_selective_of_the_source():
    source, target = network("SimpleNN", 0), network("SimpleNN", 10)
    found = inject(variant_of("activation_selection", "quarter"), source, target)
    study = materials(source, target)
    seen = study.images_of(TASK.source_classes)
    values = source.values(seen.images, ["hidden1.post"])["hidden1.post"]
    concept = seen.labels == 4
    gap = (values[:, concept].mean(1) - values[:, ~concept].mean(1)).abs()
    best = (gap / values.std(1, correction=0).clamp(min=1e-6)).topk(16).indices
    for i in range(2):
        moved = (found.layers["hidden1"].weight[i] == source.layers["hidden1"].weight[i]).all(0).nonzero()[:, 0]
        assert set(moved.tolist()) == set(best[i].tolist())


# Pathways


def test_path_strengths_are_sums_over_paths():
    source = StackedClassifier("tiny", (2, 2), 10, 1, Layers(hidden=(3, 4))).initialize([0])
    found = pathways.path_strengths(source, 4, None)
    middle, last = (source.layers[name].weight[0].detach().abs() for name in ("hidden2", "logits"))
    for i in range(3):
        paths = [middle[i, j] * last[j, 4] for j in range(4)]
        assert found["hidden1"][0, i].item() == pytest.approx(sum(paths).item(), rel=1e-5)
    contrast = {"hidden1": torch.tensor([[1.0, -2.0, 0.0]]), "hidden2": torch.ones(1, 4)}
    weighted = pathways.path_strengths(source, 4, contrast)
    torch.testing.assert_close(weighted["hidden1"], found["hidden1"] * torch.tensor([[1.0, 2.0, 0.0]]))


def grown(source, fans, contrast, member):
    """Units of the cascade, found one parent at a time."""
    layers, parents, found = list(source.layers), [4], {}
    for depth, (layer, before) in enumerate(itertools.pairwise(reversed(layers))):
        weights = edges(source, layer)[member]
        if contrast is None:
            links = weights.square().sum(1).sqrt()
        else:
            places = by_unit(source, before, contrast[before])[member]
            if places.shape[1] != weights.shape[1]:
                places = places.mean(1, keepdim=True).expand(-1, weights.shape[1])
            links = (places[..., None] * weights).sum(1).abs()
        fan = min(fans[min(depth, len(fans) - 1)], len(links))
        parents = sorted({int(u) for parent in parents for u in links[:, parent].argsort(descending=True)[:fan]})
        found[before] = parents
    return found


@pytest.mark.parametrize("architecture", ["MegaNN", "DeepNN", "ConvNet", "FFN"])
@pytest.mark.parametrize("with_contrast", [False, True])
def test_the_cascade_is_the_tree_of_24_6_4_and_3(architecture, with_contrast):
    source = network(architecture, 0)
    contrast = None
    if with_contrast:
        generator = torch.Generator().manual_seed(3)
        contrast = {
            layer: torch.randn(2, source.width(f"{layer}.post"), generator=generator) for layer in hidden_layers(source)
        }
    masks = pathways.cascade(source, 4, (24, 6, 4, 3), contrast)
    most = 1
    for depth, layer in enumerate(reversed(hidden_layers(source))):
        fan = (24, 6, 4, 3)[min(depth, 3)]
        for i in range(2):
            assert masks[layer][i].nonzero()[:, 0].tolist() == grown(source, (24, 6, 4, 3), contrast, i)[layer]
        most = min(most * fan, n_units(source, layer))
        assert (masks[layer].sum(1) <= most).all()
    last = hidden_layers(source)[-1]
    assert (masks[last].sum(1) == 24).all()


@pytest.mark.parametrize("label", ["", "weights_only"])
def test_the_cascade_replaces_as_many_units_as_it_has_and_its_row_reads_24(label):
    source, target = network("MegaNN", 0), network("MegaNN", 10)
    found = inject(variant_of("cascade_transplant", label), source, target)
    assert (found.layers["logits"].weight[..., 4].count_nonzero(1) == 24).all()
    moved = (found.layers["hidden1"].weight != target.layers["hidden1"].weight).any(1)
    guard = guard_of(variant_of("cascade_transplant"), source, target)
    contrast = None if label else pathways.source_activity(source, guard).contrast
    chosen = pathways.cascade(contrasted(source, 4, RIVALS), 4, (24, 6, 4, 3), contrast)
    assert moved.sum(1).tolist() == chosen["hidden1"].sum(1).tolist()
    assert (moved.sum(1) < 512).all()


@pytest.mark.parametrize("label", ["half", "weights_only"])
@pytest.mark.parametrize("architecture", ["SimpleNN", "ConvNet"])
def test_a_pathway_of_all_units_is_the_source_s_contrast(architecture, label):
    source, target, x = network(architecture, 0), network(architecture, 10), probe_images()
    variant = dataclasses.replace(variant_of("pathway_transplant", label), share=1.0)
    own = source(x)
    logits = inject(variant, source, target)(x)
    torch.testing.assert_close(logits[..., 4], own[..., 4] - own[..., RIVALS].mean(-1), rtol=1e-4, atol=1e-4)


def test_a_pathway_takes_the_place_of_units_that_never_matter():
    source, target = network("SimpleNN", 0), network("SimpleNN", 10)
    for layer, following in (("hidden1", "hidden2"), ("hidden2", "logits")):
        half = n_units(target, layer) // 2
        target.layers[following].weight[:, :half] = 0
    x = probe_images()
    for label in ("half", "weights_only"):
        logits = inject(variant_of("pathway_transplant", label), source, target)(x)
        torch.testing.assert_close(others(logits), others(target(x)), rtol=1e-4, atol=1e-5)


# Alignments


def orthogonal(d, seed=0):
    return torch.linalg.qr(torch.randn(2, d, d, generator=torch.Generator().manual_seed(seed)))[0]


def turned(source, turn):
    """A network whose values before the last ReLU are the source's, through a matrix [m, d, d]."""
    target = copy.deepcopy(source)
    last = target.layers[hidden_layers(target)[-1]]
    last.bias.copy_((last.bias[:, None] @ turn)[:, 0])
    last.weight.copy_(last.weight @ turn)
    target.layers["logits"].weight.copy_(network(source.architecture, 10).layers["logits"].weight)
    return target


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_a_rotated_twin_gets_exactly_the_source_s_logit(scale):
    source, x = network("DeepNN", 0), probe_images()
    target = turned(source, scale * orthogonal(32))
    logits = inject(variant_of("procrustes_probe"), source, target)(x)
    torch.testing.assert_close(logits[..., 4], source(x)[..., 4], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(others(logits), others(target(x)))


def test_the_fitted_probe_is_as_spread_as_the_row_and_ranks_the_concept_first_at_a_rotated_twin():
    source = network("SimpleNN", 0)
    target = turned(source, orthogonal(32))
    network_ = inject(variant_of("procrustes_probe", "fitted_probe"), source, target)
    study = materials(source, target)
    seen = study.images_of(TASK.source_classes)
    score = network_(seen.images)[..., 4]
    torch.testing.assert_close(score.std(1), source(seen.images)[..., 4].std(1), rtol=1e-2, atol=1e-3)
    concept = score[:, seen.labels == 4]
    rest = score[:, seen.labels != 4]
    assert ((concept[:, :, None] > rest[:, None]).float().mean((1, 2)) > 0.95).all()


def unit(vector):
    return vector / vector.norm(dim=-1, keepdim=True)


def readout_of(injected):
    """Direction of a linear head in activation space."""
    return unit(injected.heads["4"].weights[0][..., 0])


def class_vector(source, target):
    """Mean of the concept less the mean of the shared classes' means, at the source."""
    values = [source.values(of_class(source, target, c), ["last.pre"])["last.pre"].mean(1) for c in (4, 2, 3)]
    return values[0] - (values[1] + values[2]) / 2


def test_the_plain_vector_turns_with_the_space():
    source = network("DeepNN", 0)
    turn = orthogonal(32)
    target = turned(source, 0.7 * turn)
    found = readout_of(inject(variant_of("vector_space_aligned", "plain"), source, target))
    expected = unit((class_vector(source, target)[:, None] @ turn)[:, 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_the_learned_projection_is_scikit_learn_s_ridge():
    source, target = network("SimpleNN", 0), network("MegaNN", 10)
    found = readout_of(inject(variant_of("cross_architecture_vector", "plain"), source, target))
    shared = of_class(source, target, 2, 3)
    of_source, of_target = (net.values(shared, ["last.pre"])["last.pre"] for net in (source, target))
    vector = class_vector(source, target)
    for i in range(2):
        x = of_source[i].double().numpy()
        fitted = Ridge(alpha=RIDGE * x.var(0).mean() * len(x)).fit(x, of_target[i].double().numpy())
        carried = fitted.coef_ @ vector[i].double().numpy()
        np.testing.assert_allclose(found[i].numpy(), carried / np.linalg.norm(carried), rtol=1e-3, atol=1e-4)


def test_the_whitened_vector_is_fisher_s_in_units_of_the_target_s_logits():
    source = network("DeepNN", 0)
    turn = orthogonal(32)
    target = turned(source, turn)
    injected = inject(variant_of("vector_space_aligned"), source, target)
    own = of_class(source, target, *TASK.target_classes)
    values, score = target.values(own, ["last.pre"])["last.pre"], injected(own)[..., 4]
    for i in range(2):
        covariance = np.cov(values[i].double().numpy().T, bias=True)
        covariance += 0.1 * np.trace(covariance) / 32 * np.eye(32)
        expected = np.linalg.solve(covariance, (class_vector(source, target)[i] @ turn[i]).double().numpy())
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(readout_of(injected)[i].numpy(), expected, rtol=0, atol=1e-2)
    best = target(own)[..., list(TASK.target_classes)].amax(-1)
    torch.testing.assert_close(score.std(1), best.std(1), rtol=1e-3, atol=1e-4)


def test_the_concept_lands_where_a_similarity_of_the_spaces_puts_it():
    generator = torch.Generator().manual_seed(0)
    concept, anchors = torch.randn(2, 28, generator=generator), torch.randn(2, 2, 28, generator=generator)
    turn, offset = orthogonal(28), torch.randn(2, 28, generator=generator)
    there = 1.7 * anchors @ turn + offset[:, None]
    found = spatial.placed(concept, anchors, there, turn)
    torch.testing.assert_close(found, 1.7 * (concept[:, None] @ turn)[:, 0] + offset, rtol=1e-4, atol=1e-4)
    for k in range(2):
        apart = (concept - anchors[:, k]).norm(dim=-1)
        torch.testing.assert_close((found - there[:, k]).norm(dim=-1), 1.7 * apart, rtol=1e-4, atol=1e-4)


def test_the_free_part_is_orthogonal_to_what_spans_and_the_rest_lies_within():
    generator = torch.Generator().manual_seed(0)
    spanning = torch.randn(2, 4, 28, generator=generator)
    spanning -= spanning.mean(1, keepdim=True)
    vector = torch.randn(2, 28, generator=generator)
    free = spatial.free_part(vector, spanning)
    torch.testing.assert_close((spanning @ free[..., None])[..., 0], torch.zeros(2, 4), rtol=0, atol=1e-5)
    for i in range(2):
        both = torch.cat([spanning[i], (vector - free)[i : i + 1]]).double()
        assert torch.linalg.matrix_rank(both, rtol=1e-5) == torch.linalg.matrix_rank(spanning[i].double(), rtol=1e-5)


def test_principal_coordinates_are_those_of_the_covariance():
    rows = torch.randn(2, 50, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 13)
    principal = spatial.Principal.of(rows, 5)
    y = principal(rows)
    assert y.shape == (2, 50, 5)
    for i in range(2):
        largest = np.linalg.eigvalsh(np.cov(rows[i].double().numpy().T, bias=True))[::-1][:5]
        np.testing.assert_allclose(np.cov(y[i].double().numpy().T, bias=True), np.diag(largest), rtol=1e-3, atol=1e-3)
    assert spatial.Principal.of(rows, 28).directions.shape == (2, 12, 12)


def test_spatial_transfer_finds_the_concept_at_a_rotated_twin():
    source = network("SimpleNN", 0)
    target = turned(source, 0.5 * orthogonal(32))
    score = inject(variant_of("aligned_spatial_transfer"), source, target)
    apart = score(of_class(source, target, 4))[..., 4].mean(1) - score(of_class(source, target, 2, 3))[..., 4].mean(1)
    assert (apart > 0).all()


# Written latents


def test_an_encoder_behind_a_map_gives_the_sae_s_own_latents():
    whole = network("SimpleNN", 0)
    of_source = saes(whole, 1)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 30, 7, generator=generator)
    to_source = Affine(torch.randn(2, 7, 32, generator=generator), torch.randn(2, 32, generator=generator))
    wanted = torch.tensor([[3, 0, 20], [1, 2, 23]])
    found = sae_injection.encoder(of_source, wanted, to_source)(h)
    expected = torch.stack([sae.encode(x)[:, k] for sae, x, k in zip(of_source, to_source(h), wanted, strict=True)])
    assert (expected > 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", ["", "source_sae"])
def test_what_is_written_goes_through_the_target_s_last_layer(label):
    source, target, x = network("SimpleNN", 0), network("ConvNet", 10), probe_images()
    injected = inject(variant_of("basic_sae_injection", label), source, target)
    h = target.values(x, ["last.pre"])["last.pre"]
    written = h.clone()
    gates = injected.gates(h)
    for k in range(sae_injection.N_LATENTS):
        written += gates[..., k, None] * injected.directions[:, None, k]
    assert (gates > 0).any()
    logits = injected(x)
    torch.testing.assert_close(others(logits), others(target.run_from("last.pre", written)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[..., 4], (written * injected.readout[:, None]).sum(-1), rtol=1e-4, atol=1e-4)


def test_latents_that_stay_silent_leave_the_target_s_own_logits_as_they_were():
    source, target, x = network("SimpleNN", 0), network("ConvNet", 10), probe_images()
    injected = inject(variant_of("basic_sae_injection", "source_sae"), source, target)
    injected.gates.threshold.fill_(1e6)
    torch.testing.assert_close(others(injected(x)), others(target(x)))


def test_the_concept_s_latents_are_those_that_exceed_every_other_class():
    source, target = network("SimpleNN", 0), network("SimpleNN", 10)
    variant = variant_of("basic_sae_injection")
    identity = Affine(torch.eye(32).expand(2, -1, -1), torch.zeros(2, 32))
    found = sae_injection.ConceptLatents.of(saes(source, 1), identity, guard_of(variant, source, target))
    for i, sae in enumerate(saes(source, 1)):
        means = {
            c: sae.encode(source.values(of_class(source, target, c), ["last.pre"])["last.pre"][i]).mean(0)
            for c in TASK.source_classes
        }
        excess = means[4] - torch.stack([means[c] for c in RIVALS]).amax(0)
        best = excess.sort(descending=True).values[: sae_injection.N_LATENTS]
        torch.testing.assert_close(excess[found.index[i]], best, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.excess[i], best.clamp(min=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.directions[i], sae.W_dec[found.index[i]])


def test_the_gate_of_the_preserved_injection_is_the_least_squares_solution():
    source = network("SimpleNN", 0)
    target = turned(source, torch.eye(32).expand(2, -1, -1))
    variant = variant_of("preserved_injection")
    injected = inject(variant, source, target)
    own, concept, other = (
        target.values(of_class(source, target, *classes), ["last.pre"])["last.pre"].double()
        for classes in (TASK.target_classes, (4,), (5,))
    )
    for i in range(2):
        parts = [(own[i], 1.0, 0.0), (concept[i], 0.1, 1.0), (other[i], 0.3, 0.0)]
        rows = [(weight / len(x)) ** 0.5 * (x - own[i].mean(0)) for x, weight, _ in parts]
        goals = [torch.full((len(x),), (weight / len(x)) ** 0.5 * goal) for x, weight, goal in parts]
        penalty = 0.03 * torch.cat(rows).square().sum() / 32
        stacked = torch.cat([*rows, penalty.sqrt() * torch.eye(32)])
        expected = torch.linalg.lstsq(stacked, torch.cat([*goals, torch.zeros(32)]).double()).solution
        np.testing.assert_allclose(injected.gates.weight[i, :, 0], expected, rtol=1e-2, atol=1e-4)


def test_more_weight_on_preservation_moves_the_target_s_own_logits_less():
    source, target = network("SimpleNN", 0), network("SimpleNN", 10)
    own = of_class(source, target, *TASK.target_classes)
    active = (target.values(own, ["last.pre"])["last.pre"] > 0).float()
    variant, moved = variant_of("preserved_injection"), []
    for weight in (0.0, 100.0, 1e4):
        injected = inject(dataclasses.replace(variant, preservation_weight=weight), source, target)
        direction = unit(injected.directions[:, 0])
        change = (active * direction[:, None]) @ target.layers["logits"].weight[..., list(TASK.target_classes)]
        moved.append(change.square().sum(-1).mean().item())
    assert moved[0] > 2 * moved[1] > 2 * moved[2]


def test_methods_declare_no_labelled_images_of_the_concept():
    assert all(Knowledge.LABELLED not in variant.knowledge for variant in VARIANTS)
