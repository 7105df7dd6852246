"""What the rules build: paths, members and what jobs are told, from the study alone."""

import pytest

from saeflow import plan
from saeflow.config.reading import parse

VARIANTS = {
    "topk": {"architecture": "topk", "d_sae": 64, "k": 4},
    "relu": {"architecture": "relu", "d_sae": 64, "target_l0": 4},
}


@pytest.fixture(scope="module")
def study():
    return parse(
        {
            "study": "s",
            "classifiers": {"architectures": ["FFN", "ConvNet"], "seeds": [3, 5]},
            "features": {"cards": {"seeds": [3]}},
            "activations": {"hook_points": ["last.pre", "first.post"], "shards": 2},
            "saes": {"variants": VARIANTS, "seeds": [0, 7]},
            "language": {
                "models": {
                    "words": {"embedded": {}, "hook_points": ["model.layers.0"]},
                    "hub": {
                        "id": "owner/name",
                        "revision": "abc",
                        "hook_points": [{"module": "model.layers.1", "side": "input"}],
                    },
                },
                "saes": {"variants": {"topk": VARIANTS["topk"]}, "seeds": [2, 1]},
            },
        }
    )


@pytest.fixture(scope="module")
def captured(study):
    return list(plan.captured(study))


def test_a_stack_has_a_store_for_each_member_and_a_model_one(captured):
    images, words, hub = captured
    assert images.networks == ("FFN-full", "ConvNet-full")
    assert images.stores[:2] == [f"<results>/activations/{{network}}-s3/last.pre/{s}" for s in ("train", "test")]
    assert len(images.stores) == 2 * 2 * 2
    assert words.stores == [
        f"<results>/language/activations/{{network}}/model.layers.0/{split}" for split in ("train", "held_out")
    ]
    assert hub.everywhere(hub.stores)[0] == "<results>/language/activations/hub/model.layers.1.input/train"
    assert list(images.shards) == [0, 1]


def test_saes_are_told_by_member_variant_and_seed(study, captured):
    images, texts = plan.fitted(study, captured)
    assert len(images.each("cfg.json")) == 2 * 2 * 2
    assert images.each("cfg.json")[1] == "<results>/saes/{network}-s3/{hook}/topk-s7/cfg.json"
    assert len(images.everywhere(images.each("cfg.json"))) == 2 * 2 * 8
    assert [key for job in images.jobs for key in job]
    assert images.members_of("FFN-full", "last.pre")[1] == {
        "architecture": "FFN",
        "role": "full",
        "hook_point": "last.pre",
        "seed": 5,
    }
    assert texts.members_of("words", "model.layers.0") == [{"model": "words", "hook_point": "model.layers.0"}]
    assert texts.origins_of("hub", "model.layers.1.input")[0]["model_name"] == "owner/name"
    assert texts.features("summary.json") == ["<results>/language/features/{network}/{hook}/topk/summary.json"]
    assert len(texts.everywhere(["{network}/{hook}"])) == 2


def test_features_do_not_depend_on_where_files_lie_or_on_the_number_of_jobs(study, captured):
    (texts,) = (fitted for fitted in plan.fitted(study, captured) if fitted.reads == "texts")
    content = study.model_dump(mode="json")
    content["language"]["saes"]["shards"] = content["language"]["activations"]["shards"] = 3
    other = parse(content)
    (sharded,) = (fitted for fitted in plan.fitted(other, list(plan.captured(other))) if fitted.reads == "texts")
    assert sharded.analysis == texts.analysis
    content["language"]["text"]["context_size"] = 32
    other = parse(content)
    (longer,) = (fitted for fitted in plan.fitted(other, list(plan.captured(other))) if fitted.reads == "texts")
    assert longer.analysis["config_digest"] != texts.analysis["config_digest"]
