"""From a trained classifier and SAEs to tables, reports and pictures, by the scripts' own main functions."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from random_saes import random_sae

import analyze_features
import draw_feature_cards
from saeflow.activations import ActivationStore
from saeflow.config.images import Features
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.features.analysis import Context, Split, analyze
from saeflow.features.report import COLUMNS, report
from saeflow.models import classifiers
from saeflow.publish.cards import Features as Shown
from saeflow.publish.cards import card
from saeflow.reproduce import manifest
from saeflow.sae import formats

SEEDS, VARIANTS, SAE_SEEDS, HOOK = [3, 5], ["jumprelu", "topk"], [0], "last.pre"
IDENTITY = ("architecture", "role", "hook_point", "seed", "variant", "sae_seed")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Files that the two scripts read: 120 + 60 images of blobs, two untrained networks, four SAEs."""
    root = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 180)
    images = rng.integers(0, 40, (180, 1, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 3, 2:6] += 200
    train, test = (ImageSplit(images[part], labels[part]) for part in (slice(0, 120), slice(120, 180)))
    ImageDataset("blobs", 3, train, train[:0], test).save(root / "data.npz")
    network = classifiers.StackedClassifier("SimpleNN", (8, 8), 3, 2).initialize([3, 5])
    classifiers.save(network, root / "net.safetensors", {"role": "full", "members": [{"seed": 3}, {"seed": 5}]})
    files = {"train_stores": [], "held_out_stores": [], "saes": []}
    for i, seed in enumerate(SEEDS):
        for split, part in (("train", train), ("held_out", test)):
            folder = root / f"{split}-{seed}"
            values = network.values(torch.from_numpy(part.inputs()), (HOOK,))[HOOK][i].detach()
            # Rows in another order than the images: the source says which is which.
            order = torch.from_numpy(rng.permutation(len(part)))
            with ActivationStore.create(folder, d=32, source_columns=("image",)) as writer:
                writer.append(values[order], order[:, None])
            files[f"{split}_stores"].append(folder / "manifest.json")
            if split == "train":
                mean, scale = values.mean(0), float(1 / values.std())
        for variant in VARIANTS:
            sae = random_sae(variant, 32, 12, seed, torch.float32)
            sae.b_enc[7] = -1e6
            folder = root / f"{variant}-{seed}"
            formats.save(sae.fold_normalization(mean, scale), folder, {})
            files["saes"].append(folder / "cfg.json")
    return {"given": [root / "data.npz"], "network": [root / "net.safetensors"]} | files


def run_analysis(study, folder):
    folder.mkdir()
    cfg = {
        "features": Features(top_examples=20, pattern_examples=8, effect_examples=16).model_dump(mode="json"),
        "seeds": SEEDS,
        "variants": VARIANTS,
        "sae_seeds": SAE_SEEDS,
        "reads": "images",
        "splits": ["train", "test"],
        "members": [{"architecture": "SimpleNN", "role": "full", "hook_point": HOOK, "seed": seed} for seed in SEEDS],
        "hook": HOOK,
        "seed": 0,
        "device": "cpu",
    }
    outputs = {
        kind: [folder / f"{i}.{ending}" for i in range(4)]
        for kind, ending in (("tables", "parquet"), ("reports", "json"), ("arrays", "npz"))
    }
    beside = [*outputs["reports"], *outputs["arrays"]]
    analyze_features.main(**study, features=outputs["tables"], beside=beside, metrics=[], cfg=cfg)
    return outputs


@pytest.fixture(scope="module")
def outputs(study, tmp_path_factory):
    return run_analysis(study, tmp_path_factory.mktemp("run") / "first")


def test_equal_inputs_give_equal_bytes(study, outputs, tmp_path):
    run_analysis(study, tmp_path / "second")
    first = outputs["tables"][0].parent
    assert manifest(first, [first]) == manifest(tmp_path / "second", [tmp_path / "second"])


def test_every_table_has_the_documented_columns_and_its_own_identity(outputs):
    for i, path in enumerate(outputs["tables"]):
        table = pq.read_table(path)
        assert table.column_names == [*IDENTITY, *COLUMNS]
        assert table.num_rows == 12
        first = table.slice(0, 1).to_pylist()[0]
        expected = ("SimpleNN", "full", HOOK, SEEDS[i // 2], VARIANTS[i % 2], 0)
        assert tuple(first[name] for name in IDENTITY) == expected
        assert table.schema.field("auroc").metadata[b"description"].decode() == COLUMNS["auroc"]


def test_labels_and_images_are_found_by_the_source_of_the_rows(study, outputs):
    data = ImageDataset.load(study["given"][0])
    arrays = np.load(outputs["arrays"][0])
    sae = formats.load(study["saes"][0].parent)
    network = classifiers.load(study["network"][0]).member(0)
    z = sae.encode(network.values(torch.from_numpy(data.train.inputs()), (HOOK,))[HOOK][0])
    for latent in range(12):
        kept = arrays["top_images"][latent] >= 0
        images = arrays["top_images"][latent][kept]
        np.testing.assert_allclose(z[images, latent], arrays["top_values"][latent][kept], rtol=1e-4)
        mass = np.bincount(data.train.labels, z[:, latent].numpy(), 3)
        np.testing.assert_allclose(arrays["label_shares"][latent], mass / max(mass.sum(), 1e-9), rtol=1e-3, atol=1e-6)


def test_a_dead_latent_has_nulls_and_no_examples(outputs):
    content = json.loads(outputs["reports"][0].read_text())
    dead = content["features"][7]
    assert dead["dead"]
    assert dead["label"] == dead["promotes"] == -1
    assert dead["top_images"] == []
    for name in ("keep_r2_haufe", "keep_r2_random", "auroc", "flip_rate", "n_effective_labels", "r_ablation_addition"):
        assert dead[name] is None
    assert content["summary"]["hypotheses"]["n_by_kind"]["dead"] >= 1


def test_the_report_says_what_its_columns_mean_and_rounds_to_six_digits(outputs):
    content = json.loads(outputs["reports"][3].read_text())
    assert content["sae"]["variant"] == "topk"
    assert set(content["columns"]) == set(COLUMNS)
    assert len(content["features"]) == content["summary"]["n_latents"] == 12
    for value in content["features"][0].values():
        if isinstance(value, float):
            assert value == float(f"{value:.6g}")


def test_cards_and_gallery_are_drawn_for_all_latents_with_equal_bytes(study, outputs, tmp_path):
    for run in ("a", "b"):
        draw_feature_cards.main(
            dataset=study["given"][0],
            arrays=outputs["arrays"][1],
            table=outputs["tables"][1],
            cards=tmp_path / run / "cards",
            gallery=tmp_path / run / "gallery.png",
        )
    cards = sorted((tmp_path / "a" / "cards").iterdir())
    assert [path.name for path in cards] == [f"latent-{i:05d}.png" for i in range(12)]
    assert manifest(tmp_path / "a", [tmp_path / "a"]) == manifest(tmp_path / "b", [tmp_path / "b"])
    with Image.open(cards[0]) as picture:
        assert picture.size == (1000, 562)


def test_a_card_draws_long_texts_and_many_classes_inside_the_picture():
    n, k, classes = 2, 16, 26
    rng = np.random.default_rng(0)
    row = dict.fromkeys(COLUMNS, 0.123456) | {
        "latent": 0,
        "dead": False,
        "hypothesis": "fires where " * 30,
        "label": 25,
    }
    arrays = {f"pattern_{name}": rng.normal(size=(n, 784)) for name in ("gradient", "gradient_input", "haufe")}
    arrays |= {name: np.zeros((n, k), int) for name in ("top_images", "sample_images")}
    arrays |= {name: np.full((n, k), 123.456) for name in ("top_values", "sample_values")}
    arrays |= {name: rng.normal(size=(n, classes)) for name in ("ablation", "addition")}
    arrays |= {"label_shares": np.full((n, classes), 1 / classes), "label_rows": np.full(classes, 10)}
    arrays |= {"neighbours": np.ones((n, 5), int), "cosines": np.full((n, 5), -0.5), "image_shape": np.array([28, 28])}
    names = [chr(65 + i) for i in range(classes)]
    features = Shown([row, row], arrays, rng.random((1, 28, 28)), np.array([25]), names, "a title")
    pixels = card(features, 0).pixels()
    assert (pixels[:, :20] == 127).all()
    assert (pixels[:, 980:] == 127).all()
    assert (pixels[-3:] == 127).all()


def test_an_sae_without_a_live_latent_is_analyzed_and_reported():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 1, 4, 4, generator=generator), torch.arange(40) % 3
    split = Split(images.flatten(1), images, labels)
    sae = random_sae("jumprelu", 16, 8, dtype=torch.float32).replace(b_enc=torch.full((8,), -1e6))
    found = analyze(
        sae, split, split, lambda x: x.flatten(1), lambda v: v[:, :3], Context.of(split, split, 3), Features(), 0
    )
    content = report(found, {}, torch.arange(40))
    assert content["summary"]["dead_share"] == 1
    assert content["summary"]["hypotheses"]["n_by_kind"] == {"dead": 8}
    json.dumps(content, allow_nan=False)


@pytest.mark.usefixtures("unchecked")
def test_a_split_of_unequal_parts_is_refused():
    with pytest.raises(ValueError, match="4 activations, 3 images, 4 labels"):
        Split(torch.zeros(4, 2), torch.zeros(3, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
