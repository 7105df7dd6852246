"""What the workflow shows before any job runs: graphs, plans, refusals, and the house rules of its files."""

import ast
import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import generated_studies
import pandas as pd
import pytest
import rulegraph
import tiny_models
import yaml
from conftest import ROOT, Project
from transformers import LlamaConfig, LlamaForCausalLM

from saeflow import plan
from saeflow.config.injection import METHODS
from saeflow.config.reading import load
from saeflow.config.sections import ConfigError
from saeflow.library import modules_of
from saeflow.models.language_training import word_tokenizer

SMK = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
RULES = [rule for path in SMK for rule in re.split(r"^ *rule\b", path.read_text(), flags=re.MULTILINE)[1:]]
SCRIPTED = [rule for rule in RULES if "    script:" in rule]
STAGES = ["datasets", "models", "activations", "saes", "features", "injection", "figures", "report", "verify"]
STAGES += ["catalog", "crate"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The project as it is, building in an empty folder."""
    return Project(ROOT, tmp_path_factory.mktemp("empty"))


def test_the_default_study_is_planned_whole_in_few_jobs(project):
    jobs = project.planned(study="../config")
    assert {"build_dataset", "train_classifiers", "train_saes", "analyze_features", "write_manifest", "verify"} <= set(
        jobs
    )
    assert jobs["inject"] == len(METHODS)
    # Of the language model, its geometry and inversion there are 31.
    assert sum(jobs.values()) - jobs["inject"] <= 75


@pytest.mark.parametrize("target", STAGES)
def test_every_stage_is_a_target(project, target):
    assert project.planned(target)


def test_concepts_and_packages_are_targets_of_a_language_study(project):
    assert project.planned("concepts", study="language_smoke")["test_concepts"] == 2
    assert project.planned("packages", study="language_smoke")["write_package"] == 2


def test_a_study_without_saes_has_no_job_for_them(project):
    jobs = project.planned(study="quick")
    assert jobs["inject"] == 5
    assert jobs.keys().isdisjoint({"capture_activations", "train_saes", "analyze_features", "draw_feature_cards"})
    assert {"train_concept_saes", "write_report", "verify"} <= set(jobs)


def test_a_study_of_networks_alone_can_be_planned(project, tmp_path):
    (tmp_path / "networks.yaml").write_text(yaml.safe_dump({"study": "networks", "saes": {}}))
    jobs = project.planned(study=tmp_path / "networks")
    assert set(jobs) == {
        *("build_dataset", "train_classifiers", "gather_tables", "draw_figures", "write_report"),
        *("write_manifest", "verify", "write_site", "write_site_run"),
    }


def test_a_target_builds_no_more_than_it_needs(project):
    assert set(project.planned("models")) - {"models"} == {"build_dataset", "train_classifiers"}


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_that_ships_can_be_planned(project, path, tmp_path, request, monkeypatch):
    if "source: wordnet" in path.read_text():
        monkeypatch.setenv("NLTK_DATA", str(request.getfixturevalue("data_dir") / "nltk_data"))
    assert project.planned(study=with_folders(path, tmp_path))


def with_folders(path: Path, tmp_path: Path) -> Path:
    """The study with a model and text that exist in place of those that it leaves to its user."""
    study = yaml.safe_load(path.read_text())
    language = study.get("language", {"models": {}})
    for section in (*language["models"].values(), language.get("text", {})):
        if "folder" in section:
            section["folder"] = str(tmp_path)
    if str(tmp_path) in json.dumps(study):
        sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 18}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=512))
        model.save_pretrained(tmp_path)
        word_tokenizer(["the cat sat"], 32).tokenizer.save_pretrained(tmp_path)
        (tmp_path / "text.txt").write_text("the cat sat")
    (tmp_path / path.name).write_text(yaml.safe_dump(study))
    return tmp_path / path.stem


def test_a_model_or_text_that_is_not_there_is_told_before_any_job(project):
    run = project.snakemake("--dry-run", study="tinystories", check=False)
    assert run.returncode != 0
    assert "data/models/tinystories-llama-3m: is no folder" in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("study", "model"),
    [
        ("pythia_70m", "EleutherAI--pythia-70m@step143000"),
        ("gpt2", "openai-community--gpt2@main"),
        ("phi_2", "microsoft--phi-2@main"),
        ("gemma_2b", "google--gemma-2b@main"),
    ],
)
def test_models_and_text_of_the_hub_are_downloaded_by_rules_of_their_own(project, study, model):
    jobs = project.planned(study=study)
    assert {"download_language_model", "download_texts"} <= set(jobs)
    assert f"data/language_models/{model}" in project.snakemake("--dry-run", study=study).stdout


@pytest.mark.parametrize("study", ["smoke", "language_smoke"])
def test_lint_finds_nothing(project, study):
    assert "good condition" in "".join(project.snakemake("--lint", study=study).stderr)


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "snakefmt --check Snakefile workflow"])
def test_formatters_have_nothing_to_do(command):
    module, *arguments = command.split()
    run = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("directive", ["input", "output", "log", "benchmark", "conda", "params", "resources"])
def test_every_scripted_rule_states(directive):
    assert [rule for rule in SCRIPTED if not re.search(rf"^ +{directive}:", rule, re.MULTILINE)] == []


def test_every_scripted_rule_has_its_library_files_memory_and_run_time():
    for rule in SCRIPTED:
        name = rule.partition(":")[0]
        script = re.search(r"scripts/(\w+)\.py", rule).group(1)
        assert re.search(rf'lib=library\("{script}"[,)]', rule), name
        assert "mem_mb=memory(" in rule, name
        assert "runtime=" in rule, name


def test_there_are_no_run_blocks_and_one_container():
    text = "".join(path.read_text() for path in (*SMK, ROOT / "Snakefile"))
    assert re.search(r"^\s+run:", text, re.M) is None
    assert len(re.findall(r"^containerized:", text, re.M)) == 1


def test_the_readme_shows_the_rulegraph_as_it_is():
    assert rulegraph.shown() == rulegraph.graph(), "run `make docs`"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"saes": {"variants": {"t": {"architecture": "topk", "d_sae": 8, "k": 9}}}},
            "t.k: 9 exceeds d_sae 8",
        ),
        ({"dataset": {"name": "minst"}}, "dataset.name: 'minst' is not right"),
        ({"fetures": {}}, "did you mean 'features'?"),
        ({"dataset": {"name": "mnist", "data_dir": "nowhere", "calibration_share": 0.1}}, "nowhere"),
        (
            {"language": {"models": {"m": {"embeded": {}, "hook_points": ["a"]}}}},
            "language.models.m.embeded: {} under an unknown key; did you mean 'embedded'?",
        ),
        ({"classifiers": {"architectures": []}}, "classifiers.architectures: none given, but"),
        (
            {"injection": {"concept": 4, "lookalike": 5, "methods": ["ridge_regresion"]}},
            "did you mean 'ridge_regression'?",
        ),
        ({"injection": {"concept": 3, "lookalike": 5}}, "injection.concept: 3 must be one of the source's classes"),
        ({"reference": "lost/MANIFEST.sha256"}, "reference: lost/MANIFEST.sha256 is not there"),
        ({"activations": {"hook_points": ["hiden1.pre"]}}, "'hiden1.pre': did you mean 'hidden1.pre'? SimpleNN has"),
        (
            {"injection": {"concept": 4, "lookalike": 5, "concept_spaces": {"d_sae": 4}}},
            "injection.concept_spaces.k: 8 exceeds d_sae 4",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_any_job(project, tmp_path, changes, said):
    study = yaml.safe_load((ROOT / "config" / "studies" / "smoke.yaml").read_text()) | changes
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(study))
    run = project.snakemake("--dry-run", study=tmp_path / "bad", check=False)
    assert run.returncode != 0
    assert said in run.stdout + run.stderr


def test_what_this_machine_lacks_is_told_at_once_and_no_file_is_made(tmp_path):
    folder = tiny_models.save("llama", tmp_path / "model")
    (tmp_path / "text").mkdir()
    pd.DataFrame({"content": ["a dog"]}).to_parquet(tmp_path / "text" / "a.parquet")
    study = yaml.safe_load((ROOT / "config" / "studies" / "inversion_smoke.yaml").read_text())
    study["language"]["models"] = {"m": {"folder": str(folder), "hook_points": ["model.layers.2"]}}
    study["language"]["text"] |= {"folder": str(tmp_path / "text")}
    study["language"]["text"].pop("documents")
    study["language"]["concepts"] = {"files": ["lost.txt"]}
    study["inversion"]["clustering"]["method"] = "umap_dbscan"
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "work").mkdir()
    project = Project(ROOT, tmp_path / "work")
    run = project.snakemake("--dry-run", study=tmp_path / "bad", check=False)
    output = run.stdout + run.stderr
    assert run.returncode != 0
    for said in (
        "a.parquet: has no column 'text', but content: set language.text.column",
        "language.concepts.files: lost.txt is not there",
        "language.models.m.hook_points: 'model.layers.2': the model has no such module; nearest: model.layers.1",
        "language.text.context_size: 32 exceeds what m can read, 24 tokens",
    ):
        assert said in output
    if find_spec("umap") is None:
        assert "inversion.clustering.method: 'umap_dbscan' needs the package 'umap'" in output
    assert not list(project.work.rglob("results"))


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig): model_type = "own"
class Model(LlamaForCausalLM): config_class = Config
"""


def test_a_model_with_code_of_its_own_is_looked_at_by_a_job_before_its_text_is(tmp_path):
    folder = tiny_models.save("llama", tmp_path / "model")
    about = json.loads((folder / "config.json").read_text())
    about |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "own.py").write_text(OWN_CODE)
    own = {"folder": str(folder), "trust_remote_code": True, "hook_points": ["model.layer.0"]}
    content = yaml.safe_load((ROOT / "config" / "studies" / "language_smoke.yaml").read_text())
    content["language"]["models"] = {"own": own}
    study = tmp_path / "study"
    study.with_suffix(".yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "work").mkdir()
    project = Project(ROOT, tmp_path / "work")
    planned = project.snakemake("--dry-run", study=study)
    assert "its own Python code is run by jobs alone" in planned.stdout + planned.stderr
    run = project.snakemake("--until", "check_language_model", study=study, check=False)
    assert run.returncode != 0
    said = "language.models.own.hook_points: 'model.layer.0': the model has no such module; nearest: model.layers.0"
    assert f"check_language_model: LanguageModelError: {said}" in run.stdout + run.stderr


def said_by(command: list, **options) -> tuple[int, str]:
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    return run.returncode, run.stdout + run.stderr


def test_a_key_given_twice_is_refused_at_both_doors(project, tmp_path):
    study = (ROOT / "config/studies/smoke.yaml").read_text()
    (tmp_path / "two words.yaml").write_text(study + "verify: {rtol: 0.1}\nverify: {atol: 0.1}\n")
    line = len(study.splitlines()) + 1
    said = f"two words.yaml, lines {line} and {line + 1}: verify is given twice; keep one of them"
    run = project.snakemake("--dry-run", study=tmp_path / "two words", check=False)
    assert run.returncode != 0
    assert said in run.stdout + run.stderr
    make = ["make", "-o", f"{sys.prefix}/.locked", f"VENV={sys.prefix}"]
    for target in ("study", "report", "crate"):
        status, there = said_by([*make, target, f"STUDY={tmp_path / 'two words.yaml'}"], cwd=ROOT)
        assert status != 0
        assert said in there
        assert "Traceback" not in there


def test_make_names_a_study_that_is_not_there(tmp_path):
    make = ["make", "-o", f"{sys.prefix}/.locked", f"VENV={sys.prefix}", "study", f"STUDY={tmp_path / 'a b.yaml'}"]
    status, said = said_by(make, cwd=ROOT)
    assert status != 0
    assert f"{tmp_path / 'a b.yaml'}: no such file" in said
    assert "Traceback" not in said


def test_the_command_line_and_later_files_are_read_by_the_same_rules(project, tmp_path):
    (tmp_path / "later.yaml").write_text("saes: {training: {steps: 1e30}}\n")
    status, said = said_by([*project.command("--dry-run"), tmp_path / "later.yaml"])
    assert status != 0
    assert "saes.training.steps: 1e+30 is not right" in said
    for value, wrong in (("saes={training: {steps: 1e30}}", "saes.training.steps: 1e+30"), ("seed=-1", "seed: -1")):
        run = project.snakemake("--dry-run", "--config", value, check=False)
        assert run.returncode != 0
        assert f"{wrong} is not right" in run.stdout + run.stderr
    for settings, key in ((["seed=1", "seed=2"], "seed"), (["saes={seeds: [1], seeds: [2]}"], "seeds")):
        run = project.snakemake("--dry-run", "--config", *settings, check=False)
        assert run.returncode != 0
        assert f"{key} is given twice; keep one of them" in run.stdout + run.stderr
    assert project.planned("--config", "saes={variants: {more: {architecture: topk, d_sae: 8, k: '2'}}}")
    # A file that forgot its name is no change of the default study.
    run = project.snakemake("--dry-run", study=tmp_path / "later", check=False)
    assert "study: missing" in run.stdout + run.stderr


def test_studies_that_are_accepted_can_be_planned(tmp_path):
    accepted = []
    for number in itertools.count():
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(generated_studies.studies(random.Random(number)))
        with contextlib.suppress(ConfigError):
            load(path)
            accepted.append(path)
        if len(accepted) == 12:
            break
    status, said = said_by([sys.executable, Path(__file__).with_name("plans.py"), tmp_path, *accepted])
    assert status == 0, said
    assert [line for line in said.splitlines() if line.startswith(str(tmp_path))] == []


def locked() -> dict[str, str]:
    pins = "".join((ROOT / "envs" / name).read_text() for name in ("requirements.lock", "torch-cuda.lock"))
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", pins, re.M))


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_conda_environment_pins_what_the_lock_pins(path):
    conda_names = {"pytorch": "torch", "matplotlib-base": "matplotlib", "huggingface_hub": "huggingface-hub"}
    environment = yaml.safe_load(path.read_text())
    assert environment.keys() == {"channels", "dependencies"}
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python, *packages = environment["dependencies"]
    assert f"--python-version {python.removeprefix('python=')} " in (ROOT / "envs" / "lock.py").read_text()
    assert packages == sorted(packages)
    for spec in packages:
        name, version = spec.split("==")
        assert locked()[conda_names.get(name, name)] == version, spec


def test_the_cpu_and_the_cuda_build_of_torch_are_of_one_version():
    cpu = re.search(r"^torch==([^ +]+)\+cpu", (ROOT / "envs" / "torch-cpu.lock").read_text(), re.M).group(1)
    assert cpu == locked()["torch"]


def test_every_locked_package_has_a_digest_and_no_lock_names_a_host():
    for lock in (*ROOT.glob("envs/*.lock"), *ROOT.glob("tests/envs/*.lock"), *ROOT.glob("benchmarks/*/*.lock")):
        text = lock.read_text()
        assert "://" not in text, lock
        for block in re.split(r"^(?=\S)", text, flags=re.M)[1:]:
            assert "--hash=sha256:" in block or block.startswith(("#", "--only-binary ", "--no-binary ")), (lock, block)


def test_profiles_are_valid(project):
    for profile in ("local", "container"):
        path = Path("workflow/profiles") / profile / "profile.yaml"
        assert yaml.safe_load((ROOT / path).read_text())
    assert project.planned("--workflow-profile", str(ROOT / "workflow/profiles/local"), "datasets")


def imported_packages(script: str, kinds: Sequence[str]) -> set[str]:
    """Packages beyond the standard library that a script and its library files import at their top level."""
    files = [ROOT / "scripts" / f"{script}.py", *map(Path, modules_of(ROOT / "scripts" / f"{script}.py", kinds))]
    names = set()
    for file in files:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"saeflow"}


def test_every_rule_finds_what_it_imports_in_its_conda_environment():
    packages = {"sklearn": "scikit-learn", "torch": "pytorch", "yaml": "pyyaml", "PIL": "pillow"}
    packages |= {"matplotlib": "matplotlib-base", "pydantic_core": "pydantic"}
    for rule in SCRIPTED:
        script = re.search(r"scripts/(\w+)\.py", rule).group(1)
        # A rule for each kind of network has the environment of the kind.
        literal = re.search(r"envs/(\w+)\.yaml", rule)
        of_kind = {literal.group(1): ()} if literal else {plan.ENVIRONMENTS[k]: (k, r) for k, r in plan.READS.items()}
        for name, kinds in of_kind.items():
            environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
            there = {spec.partition("=")[0] for spec in environment["dependencies"]}
            needed = {packages.get(package, package) for package in imported_packages(script, kinds)}
            assert needed <= there, (script, name, needed - there)


def test_both_recipes_of_the_image_have_one_base_one_script_and_one_environment():
    docker, apptainer = ((ROOT / "containers" / f"saeflow.{kind}").read_text() for kind in ("Dockerfile", "def"))
    for said in (r"nvidia/cuda\S*@(sha256:[0-9a-f]{64})", r"(TORCH_BUILD=c\w+)", r" (sh /opt/\S+)", r"(PATH=\S+ .*)"):
        (here,), (there,) = (set(re.findall(said, recipe)) for recipe in (docker, apptainer))
        assert here == there
