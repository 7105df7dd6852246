"""Stacked networks: their values against plain torch, hook points, copies, files."""

import json

import pytest
import torch
from torch import nn

from saeflow.config.images import ARCHITECTURES, Layers
from saeflow.models import classifiers
from saeflow.models.classifiers import ClassifierError, StackedClassifier
from saeflow.reproduce import sha256_file


def build(architecture="ConvNet", side=8, n_classes=10, n_members=3):
    return StackedClassifier(architecture, (side, side), n_classes, n_members).initialize(range(n_members))


def images(*leading, side=8):
    return torch.rand(*leading, 1, side, side, generator=torch.Generator().manual_seed(0))


def plain(classifier, i):
    """Member i as torch's own modules."""
    modules = [nn.Unflatten(1, (1, *classifier.image_shape))]
    for name, layer in classifier.layers.items():
        weight, bias = layer.weight[i].detach(), layer.bias[i].detach()
        if name.startswith("conv"):
            twin = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=2, padding=1)
        else:
            twin, weight = nn.Linear(*weight.shape), weight.T
            modules.append(nn.Flatten())
        twin.weight.data, twin.bias.data = weight, bias
        modules += [twin, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).to(weight.dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("side", "n_classes"), [(8, 10), (28, 26), (7, 3)])
def test_every_member_is_the_plain_network_of_its_weights(architecture, side, n_classes):
    classifier, x = build(architecture, side, n_classes).double(), images(5, side=side).double()
    values = classifier.values(x, classifier.hook_points())
    logits = values["logits"]
    assert logits.shape == (3, 5, n_classes)
    for i in range(3):
        torch.testing.assert_close(logits[i], plain(classifier, i)(x.flatten(1)), rtol=1e-10, atol=1e-12)
    assert {name: value.shape[-1] for name, value in values.items()} == {
        name: classifier.width(name) for name in classifier.hook_points()
    }


def test_a_convolution_s_units_are_channels_then_rows_then_columns():
    classifier, x = build(), images(4)
    value = classifier.values(x, ["conv1.pre"])["conv1.pre"]
    layer = classifier.layers["conv1"]
    expected = nn.functional.conv2d(x, layer.weight[1], layer.bias[1], stride=2, padding=1)
    torch.testing.assert_close(value[1].unflatten(-1, (16, 4, 4)), expected)


def test_images_of_each_member_s_own_are_told_from_shared_ones():
    classifier, own = build(), images(3, 5)
    logits = classifier(own)
    for i in range(3):
        assert torch.equal(logits[i], classifier(own[i])[i])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_forward_pass_continues_from_every_hook_point(architecture):
    classifier = build(architecture)
    values = classifier.values(images(5), classifier.hook_points())
    logits = values["logits"]
    for name, value in values.items():
        assert torch.equal(classifier.run_from(name, value), logits), name


def test_post_is_the_relu_of_pre_and_logits_come_last():
    classifier = build("SimpleNN")
    assert classifier.hook_points() == ["hidden1.pre", "hidden1.post", "hidden2.pre", "hidden2.post", "logits"]
    values = classifier.values(images(5), classifier.hook_points())
    assert torch.equal(values["hidden2.post"], values["hidden2.pre"].relu())
    assert torch.equal(values["logits"], classifier(images(5)))


def test_a_pass_goes_no_further_than_the_last_hook_point_asked_for(monkeypatch):
    classifier, reached = build("SimpleNN"), []
    step = classifier._step
    monkeypatch.setattr(classifier, "_step", lambda name, value: reached.append(name) or step(name, value))
    classifier.values(images(2), ("hidden1.post", "first.pre"))
    assert reached == ["hidden1.pre", "hidden1.post"]


def test_the_jacobian_from_the_last_activations_is_the_last_layer_s_weight():
    classifier = build("MegaNN")
    post = classifier.values(images(2), ["last.post"])["last.post"]
    jacobian = torch.autograd.functional.jacobian(lambda value: classifier.run_from("last.post", value), post)
    for i in range(3):
        for n in range(2):
            torch.testing.assert_close(jacobian[i, n, :, i, n], classifier.layers["logits"].weight[i].T)
    assert not jacobian[0, 0, :, 1].any()


@pytest.mark.parametrize(
    ("architecture", "alias", "name"),
    [
        ("FFN", "first.pre", "hidden1.pre"),
        ("FFN", "last.pre", "hidden1.pre"),
        ("DeepNN", "last.post", "hidden6.post"),
        ("ConvNet", "first.post", "conv1.post"),
        ("ConvNet", "last.pre", "hidden1.pre"),
        ("ConvNet", "logits", "logits"),
    ],
)
def test_an_alias_is_captured_under_the_name_asked_for(architecture, alias, name):
    classifier = build(architecture)
    assert classifier.resolve(alias) == name
    values = classifier.values(images(2), (alias, name))
    assert set(values) == {alias, name}
    assert torch.equal(values[alias], values[name])


@pytest.mark.parametrize("name", ["hiden1.pre", "hidden3.pre", "hidden1", "hidden1.both", "logits.pre", "last", ""])
def test_an_unknown_hook_point_names_those_that_exist(name):
    with pytest.raises(ClassifierError, match=rf"hook point '{name}': .*SimpleNN has hidden1\.pre, .*logits"):
        build("SimpleNN").resolve(name)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(5, 1, 9, 8), (5, 3, 8, 8), (2, 5, 1, 8, 8), (1, 8, 8), (1, 3, 5, 1, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ClassifierError, match=r"ConvNet wants \[n, 1, 8, 8\], or that for each of its 3 members"):
        build()(torch.zeros(shape))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_architecture_and_a_wrong_number_of_seeds_are_refused():
    with pytest.raises(ClassifierError, match="'ResNet' is none of FFN, SimpleNN"):
        StackedClassifier("ResNet", (8, 8), 10)
    with pytest.raises(ClassifierError, match="seeds: 2 given for 3 members"):
        StackedClassifier("FFN", (8, 8), 10, 3).initialize([0, 1])


def test_a_member_starts_from_its_own_seed_alone():
    one = StackedClassifier("ConvNet", (8, 8), 10).initialize([7])
    several = StackedClassifier("ConvNet", (8, 8), 10, 3).initialize([5, 7, 6])
    for alone, stacked in zip(one.parameters(), several.parameters(), strict=True):
        assert torch.equal(alone[0], stacked[1])
    weight = several.layers["conv2"].weight
    # Variance of the uniform distribution within sqrt(6 / fan-in): 2 / fan-in (He et al. 2015, eq. 10).
    assert weight.var().item() == pytest.approx(2 / (16 * 9), rel=0.05)
    assert not torch.equal(weight[0], weight[1])


def test_copies_hold_the_members_asked_for():
    classifier, x = build(), images(5)
    logits = classifier(x)
    torch.testing.assert_close(classifier.select([2, 0])(x), logits[[2, 0]])
    torch.testing.assert_close(classifier.member(1)(x), logits[1:2])
    again = classifiers.concatenate([classifier.select([0]), classifier.select([1, 2])])
    torch.testing.assert_close(again(x), logits)
    classifier.layers["logits"].bias.data += 1
    torch.testing.assert_close(again(x), logits)


def test_prediction_in_batches_is_the_forward_pass():
    classifier = build()
    for x in (images(7), images(3, 7)):
        torch.testing.assert_close(classifier.predict(x, batch_size=3), classifier(x))


def test_saved_classifiers_come_back_with_equal_bytes(tmp_path):
    classifier = build()
    description = {"role": "full", "members": [{"seed": seed} for seed in range(3)]}
    for name in ("a", "b"):
        classifiers.save(classifier, tmp_path / f"{name}.safetensors", description)
    for suffix in (".safetensors", ".json"):
        assert sha256_file(tmp_path / f"a{suffix}") == sha256_file(tmp_path / f"b{suffix}")
    loaded = classifiers.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded(images(5)), classifier(images(5)))
    assert not any(parameter.requires_grad for parameter in loaded.member(0).parameters())
    content = classifiers.describe(tmp_path / "a.safetensors")
    assert content == description | {
        "architecture": "ConvNet",
        "layers": {"channels": [16, 32], "hidden": [64]},
        "image_shape": [8, 8],
        "n_classes": 10,
        "n_members": 3,
    }


def test_files_that_are_missing_damaged_or_do_not_fit_are_named(tmp_path):
    path = tmp_path / "full.safetensors"
    with pytest.raises(ClassifierError, match=r"full\.json: no description of a classifier"):
        classifiers.load(path)
    classifiers.save(build(), path, {})
    whole, sidecar = path.read_bytes(), path.with_suffix(".json")
    for content in (whole[:-100], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ClassifierError, match=r"full\.safetensors: not the weights that its \.json describes"):
            classifiers.load(path)
    path.write_bytes(whole)
    described = json.loads(sidecar.read_text())
    for changes in ({"n_members": 2}, {"layers": {"hidden": [128]}}, {"image_shape": [28, 28]}):
        sidecar.write_text(json.dumps(described | changes))
        with pytest.raises(ClassifierError, match=r"full\.safetensors: not the weights that its \.json describes"):
            classifiers.load(path)
    for content in ("{", "[]", '{"architecture": "FFN"}'):
        sidecar.write_text(content)
        with pytest.raises(ClassifierError, match=r"full\.json: no description of a classifier"):
            classifiers.load(path)


def test_an_architecture_of_one_s_own_comes_back_with_its_layers(tmp_path):
    layers = Layers(channels=(3,), hidden=(7, 5))
    mine = StackedClassifier("Slim", (8, 8), 4, 2, layers).initialize([1, 2])
    assert mine.hook_points()[0::2] == ["conv1.pre", "hidden1.pre", "hidden2.pre", "logits"]
    classifiers.save(mine, tmp_path / "m.safetensors", {"members": [{"seed": 10}, {"seed": 20}]})
    loaded = classifiers.load(tmp_path / "m.safetensors", seeds=[20, 10])
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(loaded(x), mine.select([1, 0])(x), rtol=0, atol=0)


def test_a_seed_that_is_not_there_is_named(tmp_path):
    classifiers.save(StackedClassifier("FFN", (8, 8), 4), tmp_path / "m.safetensors", {"members": [{"seed": 3}]})
    with pytest.raises(ClassifierError, match=r"m\.safetensors: holds seeds \[3\], asked for \[4\]"):
        classifiers.load(tmp_path / "m.safetensors", seeds=[3, 4])
