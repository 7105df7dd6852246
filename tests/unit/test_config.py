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
        (study(dataset={"name": "minst"}), "dataset.name: 'minst' is not right: input should be 'digits', 'mnist'"),
        (study(dataset={"data_dir": "d"}), "dataset.data_dir: 'd' is of no use to 'digits'"),
        (
            study(classifiers={"roles": {"a": {"classes": [0, 11]}}}),
            "classifiers.roles.a.classes: [11] not in dataset.name",
        ),
        (
            study(classifiers={"roles": {"a": {"classes": [1, 1]}}}),
            "classifiers.roles.a.classes: [1, 1] names a class twice",
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
        (study(classifiers={"seeds": [1, 1]}), "classifiers.seeds: [1, 1] is not right: it names 1 twice"),
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
        (model(embedded={}, hook_points=["a", {"module": "a"}]), "hook_points: a would be captured twice"),
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
