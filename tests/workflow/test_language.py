"""The small language study built for real: what it shows, that it is the same again, what a change reruns."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny_models
import yaml
from conftest import ASCII, ROOT, Project, copy_project
from neuronpedia_server import Neuronpedia

from saeflow.activations import ActivationStore
from saeflow.datasets import texts
from saeflow.models.language import load_tokenizer
from saeflow.publish import upload
from saeflow.sae import formats

STUDY = "language_smoke"
HOOKS = ("model.layers.0", "model.layers.1.mlp.gate_proj")
VARIANTS = ("batchtopk", "relu")
REPORTED = {"write_report", "write_site", "write_manifest", "write_site_run", "verify"}
ENDS = {"gather_tables_language", *REPORTED}
FEATURES = {"analyze_features_language", "load_catalog", "write_site_features"}
SAES = {"train_saes_language", "evaluate_saes_language", "test_concepts", *FEATURES}


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Project:
    project = Project(copy_project(tmp_path_factory.mktemp("project")), tmp_path_factory.mktemp("work"))
    project.snakemake(study=STUDY)
    return project


def results(project: Project) -> Path:
    return project.work / "results" / STUDY


def changed(project: Project, folder: Path, change) -> Path:
    study = yaml.safe_load((ROOT / "config" / "studies" / f"{STUDY}.yaml").read_text())
    change(study["language"])
    (folder / "changed.yaml").write_text(yaml.safe_dump(study))
    return folder / "changed"


def test_every_hook_point_and_variant_has_its_dashboards(language):
    for hook in HOOKS:
        for variant, d_sae in zip(VARIANTS, (64, 48), strict=True):
            folder = results(language) / "language" / "features" / "words" / hook / variant
            features, contexts = (pd.read_parquet(folder / f"{name}.parquet") for name in ("features", "contexts"))
            assert len(features) == d_sae
            assert set(contexts["feature"]) == set(features["feature"][~features["dead"]])
            assert (contexts.groupby("feature").size() <= 5).all()
            summary = json.loads((folder / "summary.json").read_text())
            assert summary["ce_clean"] < summary["ce_sae"] < summary["ce_zero"]
            assert summary["n_tokens"] >= 20_000
            assert 0 < summary["explained_variance"] < 1
            # 64 wide is the MLP, which has no place in the residual stream.
            assert all(len(tokens) == (10 if hook == HOOKS[0] else 0) for tokens in features["top_tokens"])
            sae = formats.load(results(language) / "language" / "saes" / "words" / hook / f"{variant}-s0")
            assert (sae.d_in, sae.d_sae) == (summary["d_in"], d_sae)
            assert sae.metadata["model_name"] == "words"
            assert sae.metadata["hook_name"] == hook


def test_every_concept_has_a_verdict_beside_chance_and_a_probe(language):
    for hook in HOOKS:
        folder = results(language) / "language" / "features" / "words" / hook / "relu" / "concepts"
        verdicts, scores = (pd.read_parquet(folder / f"{name}.parquet") for name in ("verdicts", "scores"))
        assert len(verdicts) == 10
        assert (verdicts["passed"] == (verdicts["auroc"] > verdicts["null_p95"])).all()
        assert (verdicts["learnt"] == (verdicts["auroc"] > verdicts["control_auroc"])).all()
        assert verdicts["null_p95"].between(0.5, 0.75).all()
        assert scores.groupby("concept")["rank"].apply(list).map(lambda ranks: ranks == [1, 2, 3, 4, 5]).all()


def test_the_catalog_answers_about_it(language):
    command = [sys.executable, "-m", "saeflow", "features", "top", "gate_proj/relu", "--json", "--dense"]
    command += ["--results", results(language).parent]
    environment = os.environ | {"PYTHONPATH": str(language.root / "scripts")}
    found = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 10
    assert found[0]["interpretability"] >= found[-1]["interpretability"]


@pytest.fixture(scope="module")
def packaged(language, tmp_path_factory) -> Project:
    project = Project(language.root, tmp_path_factory.mktemp("packaged") / "work")
    shutil.copytree(language.work, project.work, symlinks=True)
    project.snakemake("all", "packages", study=STUDY)
    return project


def test_packages_are_verified_and_carry_on_elsewhere(packaged):
    for hook in HOOKS:
        folder = results(packaged) / "packages" / "words" / hook
        assert {path.name for path in folder.iterdir() if path.is_dir()} == set(VARIANTS)
        for variant in VARIANTS:
            found = json.loads((folder / f"{variant}.verification.json").read_text())
            assert "failed" not in found.values()
            assert len(found) >= 32
            sae = formats.load(folder / variant / "saelens")
            assert sae.metadata["hook_name"] == hook


def test_the_commands_of_the_readme_work_on_what_was_built(packaged):
    section = (ROOT / "README.md").read_text().partition("## What the features are")[2].partition("```sh\n")[2]
    built, *told = [shlex.split(line, comments=True) for line in section.partition("```")[0].splitlines()]
    assert built == ["snakemake", "all", "packages", "--cores", "2", "--configfile", "config/studies/language.yaml"]
    assert [words[:-1] if words[-1] == "3" else words for words in told] == [
        ["saeflow", "features", "top", "model.layers.1/batchtopk"],
        ["saeflow", "features", "details", "model.layers.1/batchtopk"],
        ["saeflow", "verify", "results/language/packages/words/model.layers.1/batchtopk"],
        ["saeflow", "upload", "results/language/packages/words/model.layers.1/batchtopk"],
    ]
    environment = os.environ | {"PYTHONPATH": str(packaged.root / "scripts"), upload.KEY: Neuronpedia.key}

    def run(words: list[str], *more: str) -> str:
        here = [
            w.replace("results/language/", f"results/{STUDY}/").replace("model.layers.1/", f"{HOOKS[0]}/")
            for w in words
        ]
        command = [sys.executable, "-m", "saeflow", *here[1:], *more]
        done = subprocess.run(command, cwd=packaged.work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    top, details, verify, send = told
    assert len(json.loads(run(top, "--json"))) == 10
    assert json.loads(run(details, "--json"))["feature"] == 3
    assert "58 passed, 0 failed, 2 skipped" in run(verify)  # sparsify has no BatchTopK
    assert "--yes sends them" in run(send)
    with Neuronpedia.running() as server:
        assert "features created" in run(send, "--yes", "--server", server)
        assert sum(len(body["features"]) for body in Neuronpedia.received) > 0


def test_the_report_shows_all_seeds(language):
    tables = results(language) / "language" / "tables"
    assert len(pd.read_parquet(tables / "saes.parquet")) == 2 * 2 * 2
    assert (pd.read_parquet(tables / "saes_summary.parquet")["n"] == 2).all()
    page = (results(language) / "report.html").read_text()
    assert "Language models words" in page
    assert page.count("gate_proj") >= 2
    assert 'id="networks"' not in page


def test_every_file_is_in_the_manifest_with_its_digest(language):
    folder = results(language)
    subprocess.run(["sha256sum", "--check", "--quiet", "MANIFEST.sha256"], cwd=folder, check=True)
    listed = {line.partition("  ")[2] for line in (folder / "MANIFEST.sha256").read_text().splitlines()}
    files = {p.relative_to(folder).as_posix() for p in (folder / "language").rglob("*") if p.is_file()}
    assert {f for f in files - listed if not f.endswith(".snakemake_timestamp")} == set()


def in_shards(study: dict) -> None:
    study["activations"]["shards"] = 3
    study["saes"]["shards"] = 2


def test_a_second_build_elsewhere_in_several_jobs_has_the_same_bytes(language, tmp_path):
    other = Project(language.root, tmp_path / "work")
    other.work.mkdir()
    other.snakemake(study=changed(language, tmp_path, in_shards), environment=ASCII)
    logs = results(other) / "logs"
    assert len(list((logs / "capture_activations_words").glob("*.log"))) == 3
    assert len(list((logs / "train_saes_language").rglob("*.log"))) == 2 * len(HOOKS)
    one, several = (
        [
            line
            for line in (results(project) / "MANIFEST.sha256").read_text().splitlines()
            if "/activations/" not in line
        ]
        for project in (language, other)
    )
    assert len(one) > 50
    assert several == one
    stores = sorted((results(language) / "language" / "activations").rglob("manifest.json"))
    assert len(stores) == 2 * len(HOOKS)
    for path in stores:
        here, there = (
            [part["sha256"] for part in json.loads(file.read_text())["parts"]]
            for file in (path, results(other) / path.relative_to(results(language)))
        )
        assert len(there) == 3
        for array in ("activations", "source"):
            assert [digest for part in there for digest in part[array]] == here[0][array]


def test_nothing_is_left_to_do(language):
    assert language.planned(study=STUDY) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["features"].update(top_contexts=6), FEATURES | ENDS),
        (lambda s: s.update(concepts={"top": 3}), {"test_concepts", "load_catalog", "write_site_features"} | REPORTED),
        (lambda s: s.update(publish={"title": "Other"}), set()),
        (lambda s: s["saes"]["training"].update(steps=151), SAES | ENDS),
        (
            lambda s: s["models"]["words"].update(hook_points=["model.layers.0"], dtype="bfloat16"),
            {"capture_activations_words"} | SAES | ENDS,
        ),
        (
            lambda s: s["models"]["words"]["embedded"].update(steps=101),
            {"train_language_model", "tokenize_texts", "capture_activations_words"} | SAES | ENDS,
        ),
    ],
    ids=["features", "concepts", "publish", "SAEs", "hook points", "model"],
)
def test_a_change_reruns_what_depends_on_it_and_nothing_else(language, tmp_path, change, expected):
    assert set(language.planned(study=changed(language, tmp_path, change))) == expected


def test_text_of_a_folder_is_stored_without_the_special_tokens_that_it_spells_out(language, tmp_path):
    model, text = tiny_models.save("llama", tmp_path / "model"), tmp_path / "text"
    text.mkdir()
    lines = ["the cat <s> sat on the mat .", "a dog ran , <unk> who saw it", "", "<s> the dog sat ."] * 100
    (text / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())

    def change(section):
        section["models"] = {"tiny": {"folder": str(model), "hook_points": ["model.layers.0"]}}
        section["text"] = {"folder": str(text), "context_size": 16, "train_tokens": 900, "held_out_tokens": 300}

    project = Project(language.root, tmp_path)
    run = project.snakemake("--until", "build_texts", study=changed(language, tmp_path, change), check=False)
    assert "1 document found in 1 file (language.text.folder)" in run.stdout + run.stderr

    def by_line(section):
        change(section)
        section["text"]["separator"] = "\n"

    project.snakemake("--until", "capture_activations_tiny", study=changed(language, tmp_path, by_line))
    folder = results(project) / "language"
    documents = dict(texts.read(folder / "texts" / "documents.parquet"))
    assert set(documents.values()) == {line for line in lines if line}
    tokens = load_tokenizer(model, tiny_models.SETTINGS)
    for split in texts.SPLITS:
        store = ActivationStore.open(folder / "activations" / "tiny" / "model.layers.0" / split)
        document, position, _, token = store.source().numpy().T
        assert set(token) == set(tokens.tokenizer.get_vocab().values()) - {tokens.start}
        spelt = {i: tokens.encode([documents[i]])[0] for i in set(document)}
        assert all(spelt[d][p] == t for d, p, t in zip(document, position, token, strict=True))


def test_tokens_that_the_text_lacks_are_told_before_the_model_is_trained(language, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(language.work, work, symlinks=True)
    project = Project(language.root, work)
    study = changed(language, tmp_path, lambda s: s["text"].update(train_tokens=90_000))
    run = project.snakemake("--until", "tokenize_texts", study=study, check=False)
    assert run.returncode != 0
    said = (
        "train_language_model: TextError: language.text: 90,000 tokens are asked for, the documents of this split have"
    )
    assert said in run.stdout + run.stderr
