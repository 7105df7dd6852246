"""The SAE injection methods: closed forms of what they are made of, and what every method must keep to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.covariance import OAS
from sklearn.linear_model import Ridge
from torch.distributions import MultivariateNormal

from saeflow.config.images import Classifiers, Layers
from saeflow.config.injection import ConceptSpaces, Injection
from saeflow.config.saes import Training
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.injection import concept_saes, densities
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.alignment import Sample, fitted, procrustes, residual_covariance, ridge
from saeflow.injection.densities import Gaussian, LikelihoodRatio, LinearRatio, OwnClasses
from saeflow.injection.knowledge import T0, Knowledge, KnowledgeError
from saeflow.injection.materials import Materials
from saeflow.injection.method import NotApplicableError, method
from saeflow.injection.methods import adversarial_direction
from saeflow.injection.methods.architecture_agnostic import common_space, principal_components
from saeflow.injection.methods.neural_aligner import HiddenLayer
from saeflow.injection.protocol import Guard
from saeflow.injection.task import Task
from saeflow.models import classifiers
from saeflow.models.classifiers import StackedClassifier
from saeflow.sae import health
from saeflow.sae.architectures import SparseAutoencoder

METHODS = (
    "precomputed_alignment",
    "neural_aligner",
    "dimension_scaling",
    "sparsity_optimisation",
    "hierarchical_transfer",
    "several_concepts",
    "adversarial_direction",
    "architecture_agnostic",
    "continual_injection",
)
N_MEMBERS = 2
SPACES = ConceptSpaces(
    d_sae=16,
    k=4,
    sizes=(8, 16),
    sparsities=(2, 4),
    sweep_architectures=3,
    training=Training(steps=20, batch_size=32, warmup_steps=5, sparsity_warmup_steps=0),
)
SETTINGS = Injection(
    concept=4, lookalike=5, blind=None, sequence={5: "source"}, synthetic_images=60, concept_spaces=SPACES
)
CLASSES = {"target": (0, 1, 2, 3), "source": (2, 3, 4, 5)}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


@pytest.fixture(scope="module")
def images():
    """Sixty images of each of ten classes: a pattern per class, and noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 60)
    patterns = rng.random((10, 1, 8, 8))
    noisy = 0.8 * patterns[labels] + 0.2 * rng.random((600, 1, 8, 8))
    return ImageSplit(noisy.astype(np.float32), labels)


@pytest.fixture(scope="module")
def networks():
    """Random networks of three architectures in both roles."""
    layers = {"SimpleNN": (12, 8), "WideNN": (24, 12), "DeepNN": (12, 10, 8)}
    return {
        role: {
            name: StackedClassifier(name, (8, 8), 10, N_MEMBERS, Layers(hidden=hidden))
            .initialize([100 * i + 10 * j + k for k in range(N_MEMBERS)])
            .requires_grad_(False)
            for j, (name, hidden) in enumerate(layers.items())
        }
        for i, role in enumerate(CLASSES)
    }


@pytest.fixture(scope="module")
def saes(networks, images):
    return concept_saes.train(networks, CLASSES, images, SPACES, swept=tuple(CLASSES), seed=0)


@pytest.fixture
def materials(networks, images, saes):
    task = Task(CLASSES["target"], CLASSES["source"], 4, 5, 10)
    return Materials(task, images, SETTINGS, 0, networks=networks, classes=CLASSES, concept_saes=saes)


def variants():
    return [pytest.param(variant, id=variant.label) for name in METHODS for variant in method(name).variants(SETTINGS)]


def stages(variant, materials, knowledge=None):
    """Every stage of one variant on the pair WideNN to SimpleNN."""
    source, target = materials.networks["source"]["WideNN"], materials.networks["target"]["SimpleNN"]
    allowed = variant.knowledge if knowledge is None else knowledge
    guard = Guard(materials, allowed, asker=variant.label, source=source, target=target)
    return list(variant.stages(source, target, guard))


def probe():
    return torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# Maps.


def test_ridge_is_scikit_learns_of_each_member():
    x, y = normal(2, 50, 6), normal(2, 50, 4, seed=1)
    found = ridge(x, y, penalty=0.3)
    for i in range(2):
        centered = x[i] - x[i].mean(0)
        reference = Ridge(alpha=0.3 * centered.square().sum().item() / 6).fit(x[i].numpy(), y[i].numpy())
        np.testing.assert_allclose(found.weight[i].T, reference.coef_, atol=1e-5)
        np.testing.assert_allclose(found.bias[i], reference.intercept_, atol=1e-5)


def test_procrustes_is_scipys_rotation_and_the_best_scale():
    x, y = normal(1, 40, 5), normal(1, 40, 5, seed=1)
    found = procrustes(x, y)
    centered, aim = (v[0] - v[0].mean(0) for v in (x, y))
    turned, _ = orthogonal_procrustes(centered.numpy(), aim.numpy())
    image = centered.numpy() @ turned
    scale = (image * aim.numpy()).sum() / (image**2).sum()
    np.testing.assert_allclose(found.weight[0], scale * turned, atol=1e-5)


def test_procrustes_undoes_a_rotation_and_scale_into_a_wider_space():
    x = normal(2, 40, 5)
    y = 3 * x @ rotation(9)[:5] + 2
    torch.testing.assert_close(procrustes(x, y)(x), y, atol=1e-4, rtol=1e-4)


def test_residual_covariance_is_that_of_what_the_map_leaves_out():
    x, noise = normal(2, 4000, 3), normal(2, 4000, 3, seed=1)
    found = residual_covariance(lambda rows: 2 * rows, x, 2 * x + noise)
    torch.testing.assert_close(found, noise.mT @ noise / 4000)


def test_what_a_ridge_map_leaves_out_is_known_without_a_second_pass():
    x = normal(2, 300, 5) + 3
    y = x @ normal(2, 5, 4, seed=1) + normal(2, 300, 4, seed=2)
    to, left_out = fitted(Sample.of(x, 0.3), Sample.of(y))
    torch.testing.assert_close(left_out, residual_covariance(to, x, y), atol=1e-4, rtol=1e-4)


def test_a_sample_in_parts_is_the_sample():
    x, y = normal(2, 300, 5) + 3, normal(2, 300, 4, seed=1)
    whole = fitted(Sample.of(x), Sample.of(y))
    parts = fitted(*(Sample(lambda values=values: values.split([100, 200], 1)) for values in (x, y)))
    torch.testing.assert_close(parts[0].weight, whole[0].weight)
    torch.testing.assert_close(parts[1], whole[1])


def test_a_hidden_layer_fits_what_no_affine_map_does():
    x = normal(2, 2000, 2)
    y = x.abs()

    def error(to):
        return (to(x) - y).square().mean().item()

    layer = HiddenLayer.of(Sample.of(x), torch.Generator().manual_seed(0))
    to, left_out = layer.fitted(Sample.of(y))
    assert error(to) < 0.1 * error(ridge(x, y))
    torch.testing.assert_close(left_out, residual_covariance(to, x, y), atol=1e-4, rtol=1e-3)


def test_the_common_space_of_rotated_copies_is_what_they_are_copies_of():
    shared = normal(1, 500, 4)
    copies = [shared @ rotation(6, seed)[:4] for seed in range(3)]
    strangers = [normal(1, 500, 6, seed=9)]
    found = common_space([principal_components(values) for values in (*copies, *strangers)], 4)
    torch.testing.assert_close(found.square().mean(1), torch.ones(1, 4), atol=1e-3, rtol=0)
    remade = ridge(found, shared, penalty=1e-8)(found)
    assert (remade - shared).square().mean() < 1e-2


# Densities.


def test_shrinkage_is_scikit_learns_oas():
    rows = normal(2, 30, 8) @ torch.diag(torch.arange(1, 9).float())
    found = Gaussian.of(rows)
    for i in range(2):
        np.testing.assert_allclose(found.covariance[i], OAS().fit(rows[i].numpy()).covariance_, rtol=1e-4, atol=1e-4)


def test_noise_widens_a_gaussian():
    rows, noise = normal(2, 30, 3), torch.eye(3).expand(2, 3, 3)
    torch.testing.assert_close(Gaussian.of(rows, noise).covariance, Gaussian.of(rows).covariance + noise)


def test_densities_are_torchs_but_for_a_constant():
    gaussians = [Gaussian.of((1 + j) * normal(2, 50, 4, seed=j) + j) for j in range(3)]
    h = normal(2, 10, 4, seed=7)
    found = torch.stack([gaussian.density(h) for gaussian in gaussians], -1)
    for j, gaussian in enumerate(gaussians):
        for i in range(2):
            reference = MultivariateNormal(gaussian.mean[i], gaussian.covariance[i]).log_prob(h[i])
            constant = 2 * np.log(2 * np.pi)
            torch.testing.assert_close(found[i, :, j], reference + constant, atol=1e-4, rtol=1e-4)


def test_likelihood_ratio_is_its_equation():
    concept, own, other, lookalike = (Gaussian.of(normal(2, 50, 3, seed=j) + j) for j in range(4))
    h = normal(2, 10, 3, seed=7)
    p = torch.stack([gaussian.density(h) for gaussian in (concept, own, other, lookalike)], -1).double().exp()
    expected = (p[..., 0] / (p[..., 1:3].amax(-1) + np.exp(2.0) * p[..., 3])).log() / densities.UNCERTAINTY
    found = LikelihoodRatio(concept, OwnClasses([own, other]), [lookalike], handicap=2.0)(h)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)


def test_the_linear_ratio_is_the_likelihood_ratio_of_classes_with_the_average_covariance():
    gaussians = [Gaussian.of((1 + j) * normal(2, 50, 3, seed=j) + j) for j in range(4)]
    average = torch.stack([gaussian.covariance for gaussian in gaussians]).mean(0)
    concept, own, other, lookalike = (Gaussian(gaussian.mean, average) for gaussian in gaussians)
    expected = LikelihoodRatio(concept, OwnClasses([own, other]), [lookalike], handicap=2.0)
    concept, own, other, lookalike = gaussians
    found = LinearRatio(concept, [own, other], [lookalike], handicap=2.0)
    h = normal(2, 10, 3, seed=7)
    torch.testing.assert_close(found(h), expected(h), atol=1e-3, rtol=1e-4)
    assert found.directions.shape == (2, 3, 4)


# A source that is a rotated copy of the target.


def test_a_rotated_copy_of_the_target_carries_its_concept_exactly(materials):
    target = materials.networks["target"]["SimpleNN"]
    source = target.select(range(N_MEMBERS))
    turn = rotation(source.width(SITE))
    last = source.layers["hidden2"]
    last.weight.data, last.bias.data = last.weight @ turn, last.bias @ turn
    variant = method("neural_aligner").variants(SETTINGS)[0]
    guard = Guard(materials, variant.knowledge, asker="test", source=source, target=target)
    seen = Seen.of(source, target, guard, variant.knowledge)
    concept = rows_of(*guard.source_activations(SITE), 4)
    x, y = seen.source.values(), seen.target.values()
    space = AlignedSpace.of(procrustes(x, y), x, y)
    truth = Gaussian.of(guard.activations(target, materials.images_of((4,)).images, SITE))
    carried = space.carried(concept)
    torch.testing.assert_close(carried.mean, truth.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(carried.covariance, truth.covariance, atol=1e-4, rtol=1e-3)


def test_the_concept_of_a_rotated_copy_is_recognised(materials):
    target = materials.networks["target"]["WideNN"]
    source = target.select(range(N_MEMBERS))
    turn = rotation(source.width(SITE))
    last = source.layers["hidden2"]
    last.weight.data, last.bias.data = last.weight @ turn, last.bias @ turn
    variant = method("neural_aligner").variants(SETTINGS)[0]
    guard = Guard(materials, variant.knowledge, asker="test", source=source, target=target)
    network = variant.inject(source, target, guard)
    answers = {label: network(materials.images_of((label,)).images)[..., 4] for label in (0, 1, 2, 3, 4, 5)}
    assert (answers.pop(4) > 0).float().mean() > 0.95
    for label, scores in answers.items():
        assert (scores > 0).float().mean() < 0.05, label


# What every method keeps to.


@pytest.mark.parametrize("variant", variants())
def test_no_sae_runs_in_an_injected_network(variant, materials, monkeypatch):
    injected = stages(variant, materials)

    def refuse(*_):
        raise AssertionError("an SAE ran")

    for name in ("encode", "decode", "forward", "encode_sparse", "preactivations"):
        monkeypatch.setattr(SparseAutoencoder, name, refuse)
    monkeypatch.setattr(concept_saes.ConceptSpace, "encode", refuse)
    monkeypatch.setattr(concept_saes.ConceptSpace, "decode", refuse)
    for stage in injected:
        assert not any(isinstance(module, SparseAutoencoder) for module in stage.network.modules())
        assert stage.network(probe()).shape == (N_MEMBERS, 50, 10)


@pytest.mark.parametrize("variant", variants())
def test_only_the_concepts_logits_change(variant, materials):
    before = materials.networks["target"]["SimpleNN"](probe())
    for stage in stages(variant, materials):
        after = stage.network(probe())
        assert after.isfinite().all()
        kept = [label for label in range(10) if label not in stage.concepts]
        torch.testing.assert_close(after[..., kept], before[..., kept])
        assert (after[..., list(stage.concepts)] != before[..., list(stage.concepts)]).any(1).all()


@pytest.mark.parametrize("variant", variants())
def test_the_guard_refuses_less_than_the_tier(variant, materials):
    for permission in Knowledge:
        # T1+ holds T1, whose images it need not ask for again.
        if permission in variant.knowledge and not (
            permission is Knowledge.SHARED and Knowledge.OWN in variant.knowledge
        ):
            with pytest.raises(KnowledgeError, match=variant.name):
                stages(variant, materials, variant.knowledge & ~permission)
    with pytest.raises(KnowledgeError, match="T0"):
        stages(variant, materials, T0)


@pytest.mark.parametrize("variant", variants())
def test_the_same_bytes_again_whatever_the_batch(variant, materials):
    first, second = (stages(variant, materials) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        whole = one.network(probe())
        assert torch.equal(whole, other.network(probe()))
        parts = torch.cat([one.network(batch) for batch in probe().split(7)], 1)
        torch.testing.assert_close(parts, whole, atol=1e-3, rtol=1e-4)


def test_several_concepts_are_injected_at_once(materials):
    (stage,) = stages(method("several_concepts").variants(SETTINGS)[0], materials)
    assert stage.concepts == (4, 5)


def test_continual_injection_stops_after_each_class(materials):
    found = stages(method("continual_injection").variants(SETTINGS)[0], materials)
    assert [stage.concepts for stage in found] == [(4,), (4, 5)]
    first, last = (stage.network(probe()) for stage in found)
    torch.testing.assert_close(first[..., 4], last[..., 4])


def test_gradients_of_adversarial_training_are_those_of_autograd():
    m, n, d, units = 2, 16, 5, 7
    h = normal(m, n, d).double()
    drawn = (normal(m, d, units, seed=2), normal(m, units, seed=3), normal(m, units, 1, seed=4), normal(m, 1, seed=5))
    parameters = [parameter.double().requires_grad_() for parameter in drawn]
    weight, bias, last, last_bias = parameters
    factor = normal(m, d, d, seed=7).double()
    sign = torch.tensor([1.0] * (n // 4) + [-1.0] * (n - n // 4), dtype=torch.float64)

    def score(x):
        return (torch.baddbmm(bias[:, None], x, weight).relu() @ last + last_bias[:, None])[..., 0]

    x = h.clone().requires_grad_()
    (slope,) = torch.autograd.grad((-sign * score(x)).sum(), x)
    direction = slope @ factor.mT
    x = (x + 0.3 * direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-300) @ factor).detach()
    loss = torch.nn.functional.softplus(-sign * score(x)).mean(1).sum()
    expected = torch.autograd.grad(loss, parameters)
    detached = [(weight.detach(), bias.detach()), (last.detach(), last_bias.detach())]
    found = adversarial_direction.gradients(h, detached, factor, 0.3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_carried_rows_have_noise_of_what_the_map_leaves_out(materials, monkeypatch):
    monkeypatch.setattr(adversarial_direction, "_CARRIED", 100_000)
    variant = method("adversarial_direction").variants(SETTINGS)[0]
    source, target = materials.networks["source"]["WideNN"], materials.networks["target"]["SimpleNN"]
    guard = Guard(materials, variant.knowledge, asker=variant.label, source=source, target=target)
    seen = Seen.of(source, target, guard, variant.knowledge)
    own, space = variant._own(target, seen, guard), AlignedSpace.ridge(seen)
    for label, found in zip((4, 5), variant._carried(seen, own, guard), strict=True):
        rows = own.whitened(space.to(rows_of(*guard.source_activations(SITE), label)))
        for i, noise in enumerate(own.whitening.mT @ space.noise @ own.whitening):
            expected = rows[i].T.cov(correction=0) + noise
            assert (found[i].T.cov() - expected).norm() < 0.03 * expected.norm()
            assert (rows[i].T.cov() - expected).norm() > 0.1 * expected.norm()


def test_adversarial_training_lowers_the_loss_of_the_worst_perturbation(materials):
    plain, robust = (
        stages(replace(method("adversarial_direction").variants(SETTINGS)[0], radius=radius), materials)[0].network
        for radius in (0.0, 3.0)
    )

    def relative_slope(network):
        head = network.heads["4"]
        h = materials.forward(network.target, materials.images_of((0, 1, 2, 3, 4, 5)).images, SITE).requires_grad_()
        scores = head(h)
        (gradient,) = torch.autograd.grad(scores.sum(), h)
        return (gradient.norm(dim=-1).mean() / scores.std()).item()

    assert relative_slope(robust) < relative_slope(plain)


def test_a_sweep_is_not_applicable_where_no_sae_was_trained(materials):
    variant = method("dimension_scaling").variants(SETTINGS)[0]
    materials.concept_saes = {key: saes for key, saes in materials.concept_saes.items() if key[1] != "SimpleNN"}
    with pytest.raises(NotApplicableError, match="SimpleNN"):
        stages(variant, materials)


# The SAEs.


def test_sweeps_are_trained_for_the_first_architectures_only(networks, images):
    spaces = SPACES.model_copy(update={"sweep_architectures": 1})
    found = concept_saes.train(networks, CLASSES, images, spaces, swept=tuple(CLASSES), seed=0)
    base = {(role, name, 16, 4) for role in networks for name in networks[role]}
    swept = {(role, "SimpleNN", d_sae, k) for role in networks for d_sae, k in ((8, 4), (16, 2))}
    assert set(found) == base | swept
    for (_, _, d_sae, _), members in found.items():
        assert [sae.d_sae for sae in members] == [d_sae] * N_MEMBERS


def test_saes_see_images_of_their_own_networks_classes_only(networks, images, saes):
    changed = images.images.copy()
    changed[images.labels >= 6] = 0
    again = concept_saes.train(
        networks, CLASSES, ImageSplit(changed, images.labels), SPACES, swept=tuple(CLASSES), seed=0
    )
    for key, members in saes.items():
        for one, other in zip(members, again[key], strict=True):
            assert torch.equal(one.W_dec, other.W_dec)


def test_the_concept_space_of_all_members_is_that_of_each_sae(saes):
    members = saes["source", "WideNN", 16, 4]
    space, h = concept_saes.ConceptSpace(members), normal(N_MEMBERS, 20, 12)
    z = space.encode(h)
    for i, sae in enumerate(members):
        torch.testing.assert_close(z[i], sae.encode(h[i]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(space.decode(z)[i], sae(h[i]), atol=1e-5, rtol=1e-4)


def test_saved_saes_come_back_and_are_the_same_bytes(saes, tmp_path):
    for name in ("a", "b"):
        concept_saes.save(dict(sorted(saes.items(), reverse=name == "b")), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = concept_saes.load(tmp_path / "a")
    assert loaded.keys() == saes.keys()
    h = normal(20, 12)
    for one, other in zip(saes["source", "WideNN", 16, 4], loaded["source", "WideNN", 16, 4], strict=True):
        assert torch.equal(one.encode(h), other.encode(h))


def test_a_broken_file_is_named(tmp_path):
    broken = tmp_path / "saes.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(concept_saes.ConceptSAEError, match=r"saes\.safetensors"):
        concept_saes.load(broken)


def test_the_rule_trains_the_saes_of_every_role(images, tmp_path):
    from train_concept_saes import main

    dataset = tmp_path / "images.npz"
    ImageDataset("digits", 10, images, images[:0], images).save(dataset)
    section = Classifiers(
        architectures=("SimpleNN",),
        roles={
            **{role: {"classes": classes} for role, classes in CLASSES.items()},
            "blind": {"classes": (2, 3, 5)},
            "other": {"classes": (6, 7)},
        },
    )
    weights = []
    for role, classes in section.roles.items():
        network = StackedClassifier("SimpleNN", (8, 8), 10, 3).initialize([0, 1, 2])
        weights.append(tmp_path / f"{role}.safetensors")
        description = {"role": role, "classes": list(classes.classes), "members": [{"seed": s} for s in section.seeds]}
        classifiers.save(network, weights[-1], description)
    cfg = {
        "classifiers": section.model_dump(mode="json"),
        "injection": SETTINGS.model_copy(update={"blind": "blind"}).model_dump(mode="json"),
        "seed": 0,
        "device": "cpu",
    }
    for name in ("first", "second"):
        main(dataset=dataset, weights=weights, saes=tmp_path / name, cfg=cfg)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    found = concept_saes.load(tmp_path / "first")
    assert {key[0] for key in found} == {"target", "source", "blind", "untrained_target", "untrained_source"}
    assert all(len(members) == 3 for members in found.values())


def test_concept_saes_that_diverge_are_told_with_what_to_change(networks, images):
    training = SPACES.training.model_copy(update={"learning_rate": 1e38})
    spaces = SPACES.model_copy(update={"training": training})
    with pytest.raises(health.DivergedError, match=r"d_sae 16, k 4: training diverged, .*learning_rate \(1e\+38\)"):
        concept_saes.train(networks, CLASSES, images, spaces, swept=(), seed=0)


def test_a_network_that_computes_no_numbers_is_named(networks, images):
    broken = StackedClassifier("SimpleNN", (8, 8), 10, N_MEMBERS, Layers(hidden=(12, 8)))
    broken.initialize(list(range(N_MEMBERS))).requires_grad_(False)
    for parameter in broken.parameters():
        parameter[1] = float("nan")
    with pytest.raises(ValueError, match=r"'network': 'source-SimpleNN, 1'\}: row 0 .* not finite"):
        concept_saes.train({"source": {"SimpleNN": broken}}, CLASSES, images, SPACES, swept=(), seed=0)
