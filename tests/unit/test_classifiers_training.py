"""Training many networks at once, and the scripts that train them and capture their activations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import capture_activations
import train_classifiers
from saeflow.activations import ActivationStore
from saeflow.config.images import ARCHITECTURES, Activations, Classifiers, Data
from saeflow.datasets import images
from saeflow.datasets.images import ImageSplit
from saeflow.models import classifiers
from saeflow.models.classifier_training import Member, train
from saeflow.models.classifiers import ClassifierError
from saeflow.reproduce import sha256_file

MEMBERS = [
    Member("target", (0, 1, 2, 3), 0),
    Member("full", tuple(range(10)), 0),
    Member("full", tuple(range(10)), 1),
]
BRIEF = Classifiers(epochs=2)


@pytest.fixture(scope="module")
def digits():
    return images.build(Data(), seed=0)


@pytest.fixture
def saved(tmp_path, digits):
    """Path of a saved dataset."""
    digits.save(tmp_path / "digits.npz")
    return tmp_path / "digits.npz"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_member_trained_in_a_stack_equals_the_one_trained_alone_to_the_bit(digits, architecture):
    together = train(architecture, digits, MEMBERS, BRIEF, stacked=True)
    in_turn = train(architecture, digits, MEMBERS, BRIEF, stacked=False)
    alone = train(architecture, digits, MEMBERS[1:2], BRIEF)
    for stacked, sequential, single in zip(
        *(trained.classifier.parameters() for trained in (together, in_turn, alone)), strict=True
    ):
        assert torch.equal(stacked, sequential)
        assert torch.equal(stacked[1:2], single)
    assert together.accuracies == in_turn.accuracies
    assert together.accuracies[1] == alone.accuracies[0]


def test_the_default_settings_learn_the_digits(digits):
    accuracies = train("SimpleNN", digits, MEMBERS[1:], Classifiers()).accuracies
    assert all(accuracy.test > 0.965 for accuracy in accuracies)
    assert all(accuracy.train > 0.98 for accuracy in accuracies)


def test_one_pass_over_mnist_gives_the_usual_accuracy(data_dir):
    mnist = images.build(Data(name="mnist", data_dir=str(data_dir / "torchvision")))
    assert train("FFN", mnist, MEMBERS[1:2], Classifiers(epochs=1)).accuracies[0].test > 0.95


def test_a_member_learns_from_its_own_classes_only(digits):
    """Other classes' images changed to noise, the member's weights stay as they were."""
    strange = digits.train.images.copy()
    others = ~np.isin(digits.train.labels, MEMBERS[0].classes)
    strange[others] = np.random.default_rng(0).random(strange[others].shape, np.float32)
    noisy = replace(digits, train=ImageSplit(strange, digits.train.labels))
    for mine, other in zip(
        *(train("FFN", data, MEMBERS[:1], BRIEF).classifier.parameters() for data in (digits, noisy)), strict=True
    ):
        assert torch.equal(mine, other)


def test_accuracies_are_those_of_the_member_s_own_classes(digits):
    trained = train("FFN", digits, MEMBERS, BRIEF)
    answers = trained.classifier.predict(torch.from_numpy(digits.test.inputs())).argmax(-1).numpy()
    own = np.isin(digits.test.labels, MEMBERS[0].classes)
    accuracy = trained.accuracies[0]
    assert accuracy.test == pytest.approx((answers[0] == digits.test.labels)[own].mean())
    assert list(accuracy.test_by_class) == [0, 1, 2, 3]
    assert accuracy.test_by_class[2] == pytest.approx((answers[0][digits.test.labels == 2] == 2).mean())


def test_the_root_seed_and_the_member_s_seed_and_classes_change_the_weights(digits):
    def weight(seed=0, **changes):
        member = Member(**({"role": "full", "classes": (0, 1, 2), "seed": 0} | changes))
        return train("FFN", digits, [member], Classifiers(epochs=1), seed=seed).classifier.layers["logits"].weight

    reference = weight()
    assert torch.equal(reference, weight(role="renamed"))
    for other in (weight(seed=1), weight(classes=(0, 1, 3))):
        assert not torch.equal(reference, other)


def test_a_class_without_images_is_refused(digits):
    with pytest.raises(ClassifierError, match=r"roles\.odd\.classes: .* digits has class 12, 14; it has 0, 1, .*, 9$"):
        train("FFN", digits, [Member("odd", (12, 14), 0)], BRIEF)


def test_training_that_diverges_names_the_network_and_the_step_size(digits):
    settings = Classifiers(epochs=1).model_copy(update={"learning_rate": 1e30})
    with pytest.raises(
        ClassifierError, match=r"FFN, role 'target', seed 0: training diverged; lower .* \(now 1e\+30\)"
    ):
        train("FFN", digits, MEMBERS[:1], settings)


def study(architecture="ConvNet"):
    """Settings of a training."""
    roles = {"full": {"classes": list(range(10))}, "target": {"classes": [0, 1, 2, 3]}}
    settings = Classifiers(epochs=1, seeds=(3, 5), roles=roles)
    return {
        "architecture": architecture,
        "classifiers": settings.model_dump(mode="json"),
        "seed": 0,
        "device": "cpu",
    }


def capture(hooks, seeds, **activations):
    """Settings of a capture."""
    return {
        "kind": "classifiers",
        "settings": {"seeds": seeds, "hook_points": hooks},
        "activations": Activations(**activations).model_dump(mode="json"),
        "device": "cpu",
    }


def test_each_role_s_file_holds_all_its_seeds_and_what_they_reach(tmp_path, saved):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        weights = [tmp_path / run / f"{role}.safetensors" for role in ("full", "target")]
        train_classifiers.main(dataset=saved, weights=weights, cfg=study())
    for name in ("full.safetensors", "full.json", "target.safetensors", "target.json"):
        assert sha256_file(tmp_path / "a" / name) == sha256_file(tmp_path / "b" / name)
    description = classifiers.describe(weights[1])
    assert (description["role"], description["classes"], description["dataset"]) == ("target", [0, 1, 2, 3], "digits")
    assert [member["seed"] for member in description["members"]] == [3, 5]
    assert set(description["members"][0]) == {"seed", "train_accuracy", "test_accuracy"}
    by_class = description["test_accuracy_by_class"]
    assert {label: len(values) for label, values in by_class.items()} == dict.fromkeys("0123", 2)
    assert classifiers.load(weights[1]).n_members == 2


def test_stores_hold_what_the_network_computes_from_every_image(tmp_path, saved, digits):
    hooks = ["last.pre", "conv1.post"]
    weights = [tmp_path / "full.safetensors", tmp_path / "target.safetensors"]
    train_classifiers.main(dataset=saved, weights=weights, cfg=study())
    folders = [tmp_path / f"{s}-{h}-{split}" for s in (5, 3) for h in hooks for split in ("train", "test")]
    capture_activations.main(
        given=[saved],
        network=[weights[1]],
        parts=[folder / "part-0" for folder in folders],
        manifests=[folder / "manifest.json" for folder in folders],
        cfg=capture(hooks, [5, 3], batch_size=100, chunk_rows=256),
    )
    values = classifiers.load(weights[1]).values(torch.from_numpy(digits.test.inputs()), hooks)
    for i, seed in enumerate((3, 5)):
        for hook in hooks:
            store = ActivationStore.open(tmp_path / f"{seed}-{hook}-test" / "manifest.json")
            rows = torch.as_tensor(store.rows(np.arange(450)))
            torch.testing.assert_close(rows, values[hook][i], rtol=1e-5, atol=1e-6)
            assert np.array_equal(np.asarray(store.source(np.arange(450))).ravel(), np.arange(450))
            assert store.metadata["seed"] == seed
            assert store.metadata["hook_point"] == {"last.pre": "hidden1.pre"}.get(hook, hook)
    assert ActivationStore.open(tmp_path / "3-last.pre-train").shape == (1347, 64)


def test_a_seed_that_was_not_trained_is_refused(tmp_path, saved):
    weights = [tmp_path / "full.safetensors", tmp_path / "target.safetensors"]
    train_classifiers.main(dataset=saved, weights=weights, cfg=study("FFN"))
    with pytest.raises(ClassifierError, match=r"full\.safetensors: holds seeds \[3, 5\], asked for \[4\]"):
        capture_activations.main(
            given=[saved], network=weights[:1], parts=[], manifests=[], cfg=capture(["last.pre"], [3, 4])
        )
