"""A study refuses what it cannot mean, and says what would be right."""

from pathlib import Path

import pytest
import yaml

from saeflow import config, config_document

ROOT = Path(__file__).parents[2]


def study(**changes):
    """A minimal valid study, changed."""
    return {"study": "s", "saes": {"variants": {"t": {"architecture": "topk", "d_sae": 64, "k": 4}}}} | changes


def sae(**keys):
    return study(saes={"variants": {"t": keys}})


def injection(**keys):
    return study(
        dataset={"name": "digits", "calibration_share": 0.2},
        classifiers={
            "architectures": ["SimpleNN"],
            "roles": {"target": {"classes": [0, 1, 2, 3]}, "source": {"classes": [2, 3, 4, 5]}},
        },
        injection={"concept": 4, "lookalike": 5, "blind": None} | keys,
    )


@pytest.mark.parametrize(
    "path", [ROOT / "config/config.yaml", *sorted((ROOT / "config/studies").glob("*.yaml"))], ids=str
)
def test_every_study_that_ships_is_valid(path):
    assert config.load(path).study


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (study(sede=1), "sede: 1 under an unknown key; did you mean 'seed'?"),
        (study(classifiers={"epohcs": 3}), "classifiers.epohcs: 3 under an unknown key; did you mean 'epochs'?"),
        (study(dataset={"name": "minst"}), "dataset.name: 'minst' is not right; give one of digits, mnist"),
        (study(dataset={"data_dir": "d"}), "dataset.data_dir: 'd' is of no use to 'digits'"),
        (
            study(classifiers={"roles": {"a": {"classes": [0, 11]}}}),
            "classifiers.roles.a.classes: [11] not in dataset.name",
        ),
        (
            study(classifiers={"roles": {"a": {"classes": [1, 1]}}}),
            "classifiers.roles.a.classes: names 1 twice; each entry stands once",
        ),
        (sae(architecture="topk", d_sae=8, k=16), "saes.variants.t.k: 16 exceeds d_sae 8"),
        (sae(architecture="relu", d_sae=8, target_l0=9), "saes.variants.t.target_l0: 9 exceeds d_sae 8"),
        (sae(architecture="relu", d_sae=8), "saes.variants.t.penalty, target_l0: give exactly one of them"),
        (sae(architecture="relu", d_sae=8, penalty=1, k=2), "saes.variants.t.k: 2 under an unknown key"),
        (sae(architecture="tpk", d_sae=8, k=2), "saes.variants.t.architecture: 'tpk' is none of relu, gated"),
        (
            sae(architecture="matryoshka", d_sae=8, k=2, prefixes=[4, 2, 8]),
            "saes.variants.t.prefixes: [4, 2, 8] must ascend and end with d_sae 8",
        ),
        (study(features={"cards": {"variants": ["u"]}}), "features.cards.variants: 'u' is not in saes.variants (t)"),
        (study(compute={"matmul_precision": "tf32"}), "compute.matmul_precision: 'tf32' needs a GPU, but device is"),
        (study(activations={"shards": 0}), "activations.shards: 0 is not right"),
        (study(classifiers={"seeds": [1, 1]}), "classifiers.seeds: names 1 twice; each entry stands once"),
        (study(study="Bad name"), "study: 'Bad name' is not right"),
        ({}, "study: missing, and it has no default"),
        (study(classifiers={"architectures": ["SimpelNN"]}), "classifiers.architectures: 'SimpelNN' is not known; did"),
        (study(classifiers={"layers": {"FFN": {"hidden": [8]}}}), "classifiers.layers.FFN: is built in as"),
        (study(activations={"roles": ["nobody"]}), "activations.roles: 'nobody' is not in classifiers.roles (full)"),
        (injection(concept=3), "injection.concept: 3 must be one of the source's classes [2, 3, 4, 5] and none of"),
        (injection(lookalike=4), "injection.lookalike: 4 is the concept itself"),
        (injection(blind="source"), "injection.blind: 'source' is trained on the concept, 4"),
        (injection(source="sauce"), "injection.source: 'sauce' is not in classifiers.roles (target, source)"),
        (injection(sequence={6: "source"}), "injection.sequence.6: 'source' must be a role that knows class 6"),
        (injection(pairs=[["SimpleNN", "FFN"]]), "injection.pairs: 'FFN' is not in classifiers.architectures"),
        (injection(methods=["ridge_regresion"]), "injection.methods: 'ridge_regresion' is not known; did you mean 'ri"),
        (
            injection() | {"dataset": {"name": "digits"}},
            "dataset.calibration_share: 0, but injection calibrates thresholds on such images",
        ),
        (
            injection() | {"classifiers": {"roles": {"target": {"classes": [0, 1]}, "source": {"classes": [4, 5]}}}},
            "injection.source: its classes [4, 5] share none with the target's [0, 1]",
        ),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_would_be_right(bad, said):
    with pytest.raises(config.ConfigError) as error:
        config.parse(bad)
    assert any(line.startswith(said) for line in str(error.value).splitlines()), str(error.value)


def language(**keys):
    return study(language={"models": {"m": {"embedded": {}, "hook_points": ["model.layers.0"]}}} | keys)


def model(**keys):
    return language(models={"m": {"hook_points": ["model.layers.0"]} | keys})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (model(), "language.models.m.embedded, id, folder: give exactly one of them, not none"),
        (model(folder="f", embedded={}), "give exactly one of them, not embedded, folder"),
        (model(id="a/b"), "language.models.m.revision: goes with `id`"),
        (model(id="../b", revision="main"), "language.models.m.id: '../b' is not right"),
        (model(folder="f", revision="main"), "language.models.m.revision: goes with `id`"),
        (
            model(embedded={"widht": 3}),
            "language.models.m.embedded.widht: 3 under an unknown key; did you mean 'width'?",
        ),
        (model(embedded={"width": 30}), "language.models.m.embedded.heads: 4 must divide width 30"),
        (model(embedded={}, hook_points=["a", {"module": "a"}]), "hook_points: names 'a' twice"),
        (
            model(embedded={}, hook_points=["a.input", {"module": "a", "side": "input"}]),
            "hook_points: a.input would be captured twice",
        ),
        (model(embedded={}, hook_points=["a", {"module": "a", "side": "middle"}]), "hook_points.1.side: 'middle'"),
        (model(embedded={}, hook_points=["a b"]), "hook_points.0.module: 'a b' is not right"),
        (model(embedded={}, hook_points=[{"modul": "a"}]), "'a' under an unknown key; did you mean 'module'?"),
        (model(folder="f", dtype="int8"), "language.models.m.dtype: 'int8' is not right"),
        (language(text={"folder": "f", "dataset": "d"}), "language.text.folder, dataset: give one of them"),
        (language(text={"dataset": "d"}), "language.text.revision: goes with `dataset`"),
        (language(text={"hierarchy": "h", "folder": "f"}), "language.text.hierarchy: is of the embedded corpus"),
        (language(text={"context_size": 1}), "language.text.context_size: 1 is not right"),
        (
            language(saes={"variants": {"t": {"architecture": "topk", "d_sae": 8, "k": 9}}}),
            "language.saes.variants.t.k: 9 exceeds d_sae 8",
        ),
        (
            language(saes={"variants": {"t": {"architecture": "topk", "d_sae": 8, "k": 2, "splice_kl": 1}}}),
            "language.saes.variants.t.splice_kl: is of classifiers",
        ),
        (study(classifiers={"architectures": []}, saes={}), "only a study with `language` can do without"),
        (language() | {"classifiers": {"architectures": []}}, "none given, but saes.variants needs some"),
    ],
)
def test_a_mistake_in_the_language_section_is_named_too(bad, said):
    with pytest.raises(config.ConfigError) as error:
        config.parse(bad)
    assert said in str(error.value)


GEOMETRY = {"hierarchical": {"steps": [10], "budget": 10, "warmup_steps": 5}, "contexts": {"train": 8, "test": 8}}


def geometry(**keys):
    return language() | {"geometry": GEOMETRY | keys}


def arms(**arm):
    return geometry(hierarchical={"arms": {"a": arm}, "parents": 4, "children": 2})


def inverted(size, **keys):
    return language(text={"context_size": size}, saes={"variants": {"t": TOPK}}) | {"inversion": keys}


TOPK = {"architecture": "topk", "d_sae": 8, "k": 2}
ON_GPU = {"compute": {"device": "cuda"}}
LOW = {"precision": "bfloat16"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            study(activations={"hook_points": ["hiden1.pre"]}),
            "activations.hook_points: 'hiden1.pre': did you mean 'hidden1.pre'? SimpleNN has hidden1.pre, hidden1.post",
        ),
        (study(activations={"hook_points": ["lst.pre"]}), "'lst.pre': did you mean 'last.pre'?"),
        (
            study(
                classifiers={"architectures": ["FFN", "DeepNN"]},
                activations={"hook_points": ["last.pre", "hidden2.pre"]},
            ),
            "activations.hook_points: 'hidden2.pre': did you mean 'hidden1.pre'? FFN has hidden1.pre, hidden1.post",
        ),
        (
            study(
                classifiers={"architectures": ["Own"], "layers": {"Own": {"channels": [4], "hidden": [8]}}},
                activations={"hook_points": ["conv2.post"]},
            ),
            "'conv2.post': did you mean 'conv1.post'? Own has conv1.pre, conv1.post, hidden1.pre, hidden1.post, logits",
        ),
        (study(dataset={"test_share": 1e-4}), "dataset.test_share: 0.0001 takes 0 of 178 images of class 0"),
        (study(dataset={"test_share": 0.9999}), "dataset.test_share: 0.9999 takes 178 of 178 images of class 0"),
        (
            study(dataset={"test_share": 0.99, "calibration_share": 0.2}),
            "dataset.calibration_share: 0.2 takes 0 of 2 images of class 0; each part needs one",
        ),
        (
            study(dataset={"name": "mnist", "calibration_share": 1e-6}),
            "dataset.calibration_share: 1e-06 takes 0 of 5923 images of class 0",
        ),
        (injection(concept_spaces={"d_sae": 4}), "injection.concept_spaces.k: 8 exceeds d_sae 4"),
        (injection(concept_spaces={"k": 64}), "injection.concept_spaces.sizes: 32 is below k 64"),
        (injection(concept_spaces={"d_sae": 24}), "injection.concept_spaces.sparsities: 32 exceeds d_sae 24"),
        (
            injection(few_shots=[1, 200]),
            "injection.few_shots: 200 exceeds the 109 training images of class 4",
        ),
        (
            injection(concept_spaces={"training": {"steps": 500, "sparsity_warmup_steps": 0} | LOW}) | ON_GPU,
            "injection.concept_spaces.training.precision: 'bfloat16' is for a CPU, but compute.device is 'cuda'",
        ),
        (study(saes={"training": LOW}) | ON_GPU, "saes.training.precision: 'bfloat16' is for a CPU"),
        (
            sae(architecture="relu", d_sae=8, target_l0=1e-6),
            "saes.variants.t.target_l0: 1e-06 asks for no active latent on 1347 rows",
        ),
        (
            model(embedded={}, hook_points=["model.layers.2"]),
            "language.models.m.hook_points: 'model.layers.2': the model has no such module; nearest: model.layers.1",
        ),
        (
            model(embedded={}, hook_points=[{"module": "model.embed_tokens", "side": "input"}]),
            "language.models.m.hook_points: 'model.embed_tokens': the model has no such module",
        ),
        (model(embedded={"vocabulary": 2}), "language.models.m.embedded.vocabulary: 2 is not right"),
        (
            language(
                models={"m": {"embedded": {"vocabulary": 8}, "hook_points": ["lm_head"]}},
                saes={"variants": {"t": TOPK}},
            ),
            "language.features.logits: 10 exceeds language.models.m.embedded.vocabulary 8",
        ),
        (
            geometry(interventions={"inner": "model.layers.9"}),
            "geometry.interventions.inner: 'model.layers.9': the model has no such module; nearest: ",
        ),
        (
            language(models={"m": {"embedded": {"vocabulary": 64}, "hook_points": ["lm_head"]}})
            | {"geometry": GEOMETRY},
            "language.models.m.embedded.vocabulary: 64 words do not determine geometry's covariance of width 64",
        ),
        (
            geometry(hierarchical={"rank": 72, "children": 9}),
            "geometry.hierarchical.rank: 72 exceeds language.models.m.embedded.width 64",
        ),
        (
            geometry(contexts={"select": 40_000, "test": 4096}),
            "geometry.contexts: select 40000 and test 4096 exceed language.text.held_out_tokens 40000",
        ),
        (
            geometry(contexts={"train": 300_000}, concepts={"prompts": 0}),
            "geometry.contexts.train: 300000 exceeds language.text.train_tokens 200000",
        ),
        (geometry(concepts={"held_out_share": 0.6}), "geometry.concepts.held_out_share: 0.6 leaves 2 of the 6 nouns"),
        (arms(k=5), "geometry.hierarchical.arms.a.k: 5 asks for 5 active of 4 latents"),
        (arms(k=7, flat=True), "geometry.hierarchical.arms.a.k: 7 asks for 14 active of 12 latents"),
        (
            geometry(hierarchical={"steps": [10], "budget": 10, "warmup_steps": 50}),
            "geometry.hierarchical.warmup_steps: 50 exceeds the last of steps, 10",
        ),
        (
            inverted(32, explanation={"window": 32}),
            "inversion.explanation.window: 32 tokens and the start token do not fit into language.text.context_size 32",
        ),
        (
            inverted(16, explanation={"window": 8}),
            "inversion.optimization.length: 16 tokens and the start token exceed what an embedded model reads",
        ),
    ],
)
def test_what_sections_ask_of_one_another_is_checked_before_any_job(bad, said):
    with pytest.raises(config.ConfigError) as error:
        config.parse(bad)
    assert any(said in line for line in str(error.value).splitlines()), str(error.value)


def test_what_only_a_stage_asks_is_no_mistake_without_it():
    stages = {"optimize": False, "explain": False}
    assert config.parse(inverted(8, pipeline=stages))
    assert config.parse(geometry(hierarchical=None, contexts={"select": 90_000}, interventions={"inner": "x"}))
    assert config.parse(injection(few_shots=[500], methods=["ridge_regression"]))
    assert config.parse(injection(concept_spaces={"k": 64, "sweep_architectures": 0}))


def test_hook_points_are_named_by_module_and_side():
    found = config.parse(model(folder="f", hook_points=["a.b", {"module": "a.b", "side": "input"}]))
    assert list(found.language.models["m"].hooks) == ["a.b", "a.b.input"]


def test_all_mistakes_are_told_at_once():
    with pytest.raises(config.ConfigError) as error:
        config.parse(study(seed=-1, dataset={"name": "x"}, features={"top": 1}))
    assert len(str(error.value).splitlines()) == 3


def test_schema_and_page_of_keys_follow_the_types():
    assert config_document.SCHEMA.read_text() == config_document.schema(), "run `make docs`"
    assert config_document.PAGE.read_text() == config_document.page(), "run `make docs`"


def test_the_page_names_every_key_of_the_default_study():
    def keys(node):
        for key, value in node.items() if isinstance(node, dict) else ():
            yield key
            yield from keys(value)

    names = set(keys(yaml.safe_load((ROOT / "config/config.yaml").read_text())))
    study = config.load(ROOT / "config/config.yaml")
    names -= {*study.saes.variants, *study.classifiers.roles, *study.injection.sequence}
    names -= {*study.language.models, *study.language.saes.variants, *study.geometry.hierarchical.arms}
    page = config_document.page()
    assert [name for name in names if f"`{name}`" not in page] == []
