"""A study refuses what it cannot mean, and says what would be right."""

import re
import subprocess
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from saeflow.config import document
from saeflow.config.document import PAGE, SCHEMA
from saeflow.config.messages import right
from saeflow.config.reading import load, parse, read
from saeflow.config.sections import ConfigError, Section, each_file_once, each_once
from saeflow.config.study import Study

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


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
    assert load(path).study


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
    with pytest.raises(ConfigError) as error:
        parse(bad)
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
    with pytest.raises(ConfigError) as error:
        parse(bad)
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
    with pytest.raises(ConfigError) as error:
        parse(bad)
    assert any(said in line for line in str(error.value).splitlines()), str(error.value)


def test_what_only_a_stage_asks_is_no_mistake_without_it():
    stages = {"optimize": False, "explain": False}
    assert parse(inverted(8, pipeline=stages))
    assert parse(geometry(hierarchical=None, contexts={"select": 90_000}, interventions={"inner": "x"}))
    assert parse(injection(few_shots=[500], methods=["ridge_regression"]))
    assert parse(injection(concept_spaces={"k": 64, "sweep_architectures": 0}))


def test_hook_points_are_named_by_module_and_side():
    found = parse(model(folder="f", hook_points=["a.b", {"module": "a.b", "side": "input"}]))
    assert list(found.language.models["m"].hooks) == ["a.b", "a.b.input"]


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        parse(study(seed=-1, dataset={"name": "x"}, features={"top": 1}))
    assert len(str(error.value).splitlines()) == 3


def test_schema_and_page_of_keys_follow_the_types():
    assert SCHEMA.read_text() == document.schema(), "run `make docs`"
    assert PAGE.read_text() == document.page(), "run `make docs`"


def test_the_page_names_every_key_of_the_default_study():
    def keys(node):
        for key, value in node.items() if isinstance(node, dict) else ():
            yield key
            yield from keys(value)

    names = set(keys(yaml.safe_load((ROOT / "config/config.yaml").read_text())))
    study = load(ROOT / "config/config.yaml")
    names -= {*study.saes.variants, *study.classifiers.roles, *study.injection.sequence}
    names -= {*study.language.models, *study.language.saes.variants, *study.geometry.hierarchical.arms}
    page = document.page()
    assert [name for name in names if f"`{name}`" not in page] == []


def annotations(annotation, metadata=(), path="study"):
    """Every type in a study, with what limits it and where it stands."""
    if hasattr(annotation, "__metadata__"):
        yield from annotations(annotation.__origin__, (*annotation.__metadata__, *metadata), path)
        return
    limits = [limit for one in metadata for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]
    yield annotation, limits, path
    if isinstance(annotation, type) and issubclass(annotation, Section):
        for name, field in annotation.model_fields.items():
            yield from annotations(field.annotation, tuple(field.metadata), f"{path}.{name}")
    # What limits a list or a choice is no limit of what is in it.
    inside = metadata if get_origin(annotation) in (Union, UnionType) else ()
    for argument in get_args(annotation) if get_origin(annotation) is not Literal else ():
        if argument not in (..., NoneType):
            yield from annotations(argument, inside, path)


TYPES = list(annotations(Study))


def test_no_list_of_a_study_may_name_a_thing_twice_but_the_layers_of_a_network():
    free = set()
    for annotation, limits, path in TYPES:
        if get_origin(annotation) is tuple and ... in get_args(annotation):
            assert any(getattr(limit, "max_length", None) for limit in limits), path
            if not {each_once, each_file_once} & {getattr(limit, "func", None) for limit in limits}:
                free.add(path)
        assert get_origin(annotation) not in (list, set, frozenset), path
    # Two layers may be of one size, and so may the two ends of a pair; the others are ranges.
    assert free == {"study.classifiers.layers.channels", "study.classifiers.layers.hidden"}


def test_every_number_of_a_study_has_a_range_and_is_nothing_else():
    numbers = [(annotation, limits, path) for annotation, limits, path in TYPES if annotation in (int, float)]
    assert len(numbers) > 100
    for annotation, limits, path in numbers:
        kind = TypeAdapter(Annotated[(annotation, *limits)])
        lowest = next(getattr(one, name) for one in limits for name in ("ge", "gt") if hasattr(one, name))
        highest = next(getattr(one, name) for one in limits for name in ("le", "lt") if hasattr(one, name))
        text = "x" if path == "study.injection.sequence" else "1"  # JSON has numbers as keys in quotes
        for bad in (float("nan"), float("inf"), True, text, None, lowest - 1, highest * 2 + 1, -1e300, 1e300):
            with pytest.raises(ValidationError):
                kind.validate_python(bad)
        assert highest <= (2**63 - 1 if path.endswith((".seed", ".seeds")) else 10**12), path


def test_every_switch_of_a_study_is_true_or_false():
    for annotation, limits, path in TYPES:
        if annotation is bool:
            for bad in (1, 0, "yes", "true", None):
                with pytest.raises(ValidationError):
                    TypeAdapter(Annotated[(annotation, *limits)]).validate_python(bad)
            assert path


def test_every_kind_of_type_is_one_that_messages_describe():
    for annotation, limits, path in TYPES:
        words = right(annotation, limits)
        assert not re.search(r"something else|\^|\\x|None|tuple|dict|\bstr\b|\bint\b", words), (path, words)
        if annotation is str:
            assert words != "text", path


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (study(seed=True), "seed: true is not right; give a whole number from 0 to 9,223,372,036,854,775,807"),
        (study(seed="1"), "seed: '1' is not right"),
        (study(seed=1.5), "seed: 1.5 is not right"),
        (study(saes={"training": {"learning_rate": float("inf")}}), "saes.training.learning_rate: .inf is not right"),
        (study(saes={"training": {"learning_rate": 1e30}}), "saes.training.learning_rate: 1e+30 is not right; give a"),
        (study(saes={"training": {"normalize": 1}}), "saes.training.normalize: 1 is not right; give true or false"),
        (study(verify={"rtol": float("nan")}), "verify.rtol: .nan is not right; give a number from 0 to 1"),
        (study(verify={"rtol": 2}), "verify.rtol: 2 is not right"),
        (sae(architecture="topk", d_sae=10**9, k=1), "saes.variants.t.d_sae: 1000000000 is not right"),
        (sae(architecture="topk", d_sae=8, k=True), "saes.variants.t.k: true is not right"),
        (study(saes={"training": {"steps": 10**12}}), "saes.training.steps: 1000000000000 is not right"),
        (study(saes=None), "saes: nothing is given; give a section, as `variants: …`"),
        (study(saes={"variants": []}), "saes.variants: [] is not right; give names of your own, each with a section"),
        (study(saes={"variants": {"t": None}}), "saes.variants.t: nothing is given; give a section, as `architecture:"),
        (study(saes={"variants": {"A b": {}}}), "saes.variants.A b: the name is not right; give lower-case letters"),
        (study(**{"5": 1, "x" * 10**6: 1}), "5: 1 under an unknown key"),
        (study(classifiers={5: 1}), "classifiers.5: 5 under an unknown key"),
        (study(study=False), "study: false is no text, unless it stands in quotes; give lower-case letters"),
        (study(study="x" * 10**7), "study: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'… (10,000,000 characters) is not"),
        (study(seed=10**5000), "seed: a number of some 5001 digits is not right"),
        (study(inversion={"optimization": {"position": "first"}}), "inversion.optimization.position: 'first' is not"),
        (study(inversion={"data": {"density": [0.1]}}), "inversion.data.density: [0.1] is not right; give a list of 2"),
        (injection(pairs=[["FFN", "FFN"], ["FFN", "FFN"]]), "injection.pairs: names ['FFN', 'FFN'] twice"),
        (injection(few_shots=[1, 5, 1.0]), "injection.few_shots: names 1 twice"),
        (study(features={"cards": {"variants": ["t", "t"]}}), "features.cards.variants: names 't' twice"),
        (study(features={"cards": {"seeds": [0, 0]}}), "features.cards.seeds: names 0 twice"),
        (study(geometry={"models": ["m", "m"]}), "geometry.models: names 'm' twice"),
        (study(geometry={"interventions": {"doses": [1, 1.0]}}), "geometry.interventions.doses: names 1.0 twice"),
        (study(geometry={"concepts": {"templates": ["a", "a"]}}), "geometry.concepts.templates: names 'a' twice"),
        (
            study(classifiers={"seeds": list(range(400_000))}),
            "classifiers.seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
        ),
        (study(activations={"shards": 10**6}), "activations.shards: 1000000 is not right; give a whole number from 1"),
        (
            study(saes=study()["saes"] | {"seeds": list(range(1000))}),
            "saes: 5 architectures x 1 roles x 3 seeds x 1 hook points x 1 variants x 1,000 SAE seeds make 15,000 SAEs",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_no_key_can_mean_is_refused_in_the_users_words(bad, said):
    with pytest.raises(ConfigError) as error:
        parse(bad)
    assert any(line.startswith(said) for line in str(error.value).splitlines()), str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("publish", "said"),
    [
        ({"date": "2025-02-29"}, "language.publish.date: '2025-02-29' is no day of the calendar"),
        ({"date": "2025-13-01"}, "language.publish.date: '2025-13-01' is no day of the calendar"),
        ({"date": "1.2.2025"}, "language.publish.date: '1.2.2025' is not right; give a day as 2026-01-31"),
        ({"variants": ["t", "t"]}, "language.publish.variants: names 't' twice"),
    ],
)
def test_a_day_that_is_none_is_refused(publish, said):
    bad = language()
    bad["language"]["publish"] = publish
    with pytest.raises(ConfigError) as error:
        parse(bad)
    assert said in str(error.value)


def test_two_ways_to_one_file_of_sentences_are_one():
    bad = language()
    bad["language"]["concepts"] = {"files": ["a/b.txt", "c.txt", "./a//b.txt"]}
    with pytest.raises(ConfigError, match=r"files: names './a//b.txt' twice"):
        parse(bad)


def test_a_file_says_its_values_as_people_write_them(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "study: s\nsaes:\n  variants: {t: {architecture: topk, d_sae: 64.0, k: 0x8}}\n"
        "  training: {learning_rate: 1e-3, steps: 1e4, dead_after: 25_000, normalize: no}\n"
        "language:\n  models: {m: {id: a/b, revision: 2024-01-01, hook_points: [x]}}\n  publish: {date: 2024-02-29}\n"
    )
    found = load(tmp_path / "s.yaml")
    assert (found.saes.variants["t"].d_sae, found.saes.variants["t"].k) == (64, 8)
    assert isinstance(found.saes.variants["t"].d_sae, int)
    training = found.saes.training
    assert (training.learning_rate, training.steps, training.dead_after) == (0.001, 10_000, 25_000)
    assert training.normalize is False
    assert (found.language.models["m"].revision, found.language.publish.date) == ("2024-01-01", "2024-02-29")


@pytest.mark.parametrize("content", ["", "# nothing\n", "- a\n", "study\n", "12\n"])
def test_a_file_without_keys_is_refused(tmp_path, content):
    (tmp_path / "s.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"s\.yaml: (is empty|holds .*); a study (has at least|is made of keys)"):
        load(tmp_path / "s.yaml")


def test_a_study_is_the_same_after_it_was_written_and_read(tmp_path):
    for path in (ROOT / "config/config.yaml", *sorted((ROOT / "config/studies").glob("*.yaml"))):
        found = load(path)
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(found.model_dump(mode="json")))
        assert load(tmp_path / "s.yaml") == found
        (tmp_path / "s.json").write_text(found.model_dump_json(indent=1))
        assert load(tmp_path / "s.json") == found


def test_later_files_and_the_command_line_go_before_the_first(tmp_path):
    (tmp_path / "a.yaml").write_text("study: s\nclassifiers: {epochs: 3, seeds: [0]}\n")
    (tmp_path / "b.yaml").write_text("classifiers: {epochs: 5}\n")
    # Text in brackets is what Snakemake makes of --config.
    over = {"seed": 4, "classifiers": {"batch_size": "1e2"}, "injection": {"blind": "null"}}
    found = read(tmp_path / "a.yaml", tmp_path / "b.yaml", over=over)
    assert found == {
        "study": "s",
        "seed": 4,
        "injection": {"blind": None},
        "classifiers": {"epochs": 5, "seeds": [0], "batch_size": 100.0},
    }


def test_the_command_says_the_name_of_a_study_or_what_is_wrong(tmp_path):
    def command(path):
        run = subprocess.run(
            [sys.executable, "-m", "saeflow.config", path], capture_output=True, text=True, cwd=SCRIPTS
        )
        return run.returncode, run.stdout + run.stderr

    assert command(ROOT / "config/studies/smoke.yaml") == (0, "smoke\n")
    status, said = command(tmp_path / "no such file.yaml")
    assert status == 1
    assert said.endswith("no such file.yaml: no such file\n")
    assert "Traceback" not in said
