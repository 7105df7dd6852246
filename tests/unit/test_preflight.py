"""What a study needs of this machine is missed before the first job, by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

from saeflow import preflight
from saeflow.config.language import EmbeddedModel, Hook
from saeflow.config.reading import parse
from saeflow.config.sections import ConfigError
from saeflow.datasets import corpus
from saeflow.datasets.hierarchy import Hierarchy
from saeflow.models import language_outline, language_training
from saeflow.models.hook_points import HookPointError, Recorder

ROOT = Path(__file__).parents[2]
HIERARCHY = ROOT / "config/concepts/hierarchy.yaml"
BATCHTOPK = {"architecture": "batchtopk", "d_sae": 64, "k": 8}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAEFLOW_TRACKERS", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Llama model of two blocks that reads 24 tokens."""
    return tiny_models.save("llama", tmp_path_factory.mktemp("llama"))


def language(models=None, **keys):
    """A study of one language model."""
    models = models or {"m": {"embedded": {}, "hook_points": ["model.layers.0"]}}
    sections = {"models": models, "saes": {"variants": {"b": BATCHTOPK}}}
    more = {key: keys.pop(key) for key in ("geometry", "inversion", "reference") if key in keys}
    return parse({"study": "s", "classifiers": {"architectures": []}, "language": sections | keys} | more)


def of_folder(folder, hooks=("model.layers.0",), **keys):
    return {"m": {"folder": str(folder), "hook_points": list(hooks)} | keys}


def said(study) -> list[str]:
    try:
        return [f"note: {note}" for note in preflight.look(study, ROOT)]
    except ConfigError as error:
        return str(error).splitlines()


def test_everything_that_is_missing_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setenv("SAEFLOW_TRACKERS", "tensorbord")
    pd.DataFrame({"content": ["a"], "id": [1]}).to_parquet(tmp_path / "a.parquet")
    study = language(
        of_folder("nowhere", attention="flash_attention_2"),
        text={"folder": str(tmp_path)},
        concepts={"files": ["lost.txt"]},
        inversion={"clustering": {"method": "umap_dbscan"}},
        geometry={"concepts": {"file": "nouns.yaml"}},
        reference="results/other",
    )
    lines = said(study)
    for start in (
        "reference: results/other is not there",
        f"{tmp_path}/a.parquet: has no column 'text', but content, id: set language.text.column",
        "language.models.m.folder: nowhere: is no folder",
        "language.concepts.files: lost.txt is not there",
        "geometry.concepts.file: nouns.yaml is not there",
        "SAEFLOW_TRACKERS: 'tensorbord' is none of tensorboard, wandb",
        "inversion.clustering.method: 'umap_dbscan' needs the package 'umap', which is not installed: pip install",
        "language.models.m.attention: 'flash_attention_2' needs the package 'flash_attn'",
    ):
        assert [line for line in lines if line.startswith(start)], (start, lines)
    assert len(lines) == 8


def test_a_column_that_is_no_text_and_a_file_that_is_no_parquet_are_named(tmp_path):
    pd.DataFrame({"text": [[1, 2]], "body": ["a"]}).to_parquet(tmp_path / "a.parquet")
    text = {"folder": str(tmp_path)}
    (line,) = said(language(text=text))
    assert line.startswith(
        f"{tmp_path}/a.parquet: column 'text' (language.text.column) holds lists of numbers, expected"
    )
    assert line.endswith("columns of text are body")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (line,) = said(language(text=text))
    assert line.startswith(f"{tmp_path}/a.parquet: no whole Parquet file")


def test_files_that_are_all_empty_are_no_text(tmp_path):
    (tmp_path / "a.txt").touch()
    (line,) = said(language(text={"folder": str(tmp_path)}))
    assert line == f"language.text.folder: {tmp_path} has no text in its 1 file"


def test_a_corpus_too_small_for_its_tokens_is_told_by_its_documents():
    (line,) = said(language(text={"documents": 100, "train_tokens": 40_000}))
    assert line.startswith("language.text.documents: 100 documents of the embedded corpus have")


def test_no_document_is_longer_than_the_corpus_says():
    nouns = Hierarchy.load(HIERARCHY)
    lengths = [len(text.split()) for text in corpus.documents(nouns, 2000, 0)]
    assert 0.7 * corpus.most_words(nouns) < max(lengths) <= corpus.most_words(nouns)


def test_files_of_concepts_are_read(tmp_path):
    shutil.copy(ROOT / "config/concepts/texts/emotions.txt", tmp_path / "emotions.txt")
    (line,) = said(language(concepts={"files": ["emotions.txt"]}))
    assert line == "concepts: emotions is the name of two files; rename one"


def test_nouns_too_few_for_geometry_are_told():
    (line,) = said(language(geometry={"concepts": {"min_words": 20}}))
    assert "0 of 23 parents" in line
    assert line.startswith("geometry.concepts.min_words: ")


@pytest.mark.parametrize("text", ["animal: 3\n", "animal: {dog: {words: a b, says: [x]}}\n"])
def test_a_hierarchy_that_is_none_is_named(text, tmp_path):
    (tmp_path / "nouns.yaml").write_text(text)
    (line,) = said(language(text={"hierarchy": "nouns.yaml"}))
    assert line.startswith("nouns.yaml: animal")


def test_a_model_is_compared_with_what_is_asked_of_it(folder, tmp_path):
    (tmp_path / "a.txt").write_text("a dog")
    study = language(
        of_folder(folder, ["model.layers.1", "model.layers.2", "model.rotary_emb"]),
        text={"folder": str(tmp_path), "context_size": 64},
        geometry={"interventions": {"inner": "model.layer.0"}, "hierarchical": {"rank": 32, "children": 8}},
        inversion={"optimization": {"length": 24}, "explanation": {"window": 16}},
    )
    lines = said(study)
    assert (
        "language.models.m.hook_points: 'model.layers.2': the model has no such module; nearest: model.layers.1"
        in (lines[0].partition(",")[0])
    )
    assert lines[1].startswith("language.models.m.hook_points: 'model.rotary_emb': has [1, 3")
    assert lines[2].startswith("geometry.interventions.inner: 'model.layer.0': the model has no such module")
    assert lines[3:] == [
        "language.text.context_size: 64 exceeds what m can read, 24 tokens",
        "inversion.optimization.length with the start token: 25 exceeds what m can read, 24 tokens",
        "geometry.hierarchical.rank: 32 exceeds the width of m, 16",
    ]


def test_a_model_that_fits_is_looked_at_once(folder, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a dog")
    own = shutil.copytree(folder, tmp_path / "model")
    study = language(of_folder(own), text={"folder": str(tmp_path), "context_size": 24})
    assert said(study) == []
    runs = []

    def answer(*arguments, **more):
        runs.append(json.loads(more["input"]))
        return subprocess.CompletedProcess(arguments, 0, '["no"]\n', "")

    monkeypatch.setattr(subprocess, "run", answer)
    assert said(study) == []
    assert not runs
    # Another model under the same name is another question.
    (own / "config.json").write_text((own / "config.json").read_text() + " ")
    assert said(study) == ["no"]
    assert runs[0]["models"][0]["context_size"] == 24


def test_a_folder_without_a_tokenizer_and_a_model_that_transformers_does_not_know_are_named(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "model")
    (own / "tokenizer.json").unlink()
    settings = {"attention": "eager", "trust_remote_code": False}
    (line,) = language_outline.problems("m", own, settings)
    assert line.startswith(f"language.models.m: {own}: no tokenizer")
    (own / "config.json").write_text('{"model_type": "nonesuch"}')
    (line,) = language_outline.problems("m", own, settings)
    assert "config.json: transformers 5" in line
    assert "has no model_type 'nonesuch'" in line


def test_code_beside_a_model_is_not_run_before_the_first_job(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "model")
    settings = json.loads((own / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (own / "config.json").write_text(json.dumps(settings))
    (own / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "a.txt").write_text("a dog")
    text = {"folder": str(tmp_path), "context_size": 24}
    (note,) = said(language(of_folder(own, trust_remote_code=True), text=text))
    assert note == "note: language.models.m: its own Python code is run by jobs alone, which look at it"
    (line,) = language_outline.problems("m", own, {"attention": "eager", "trust_remote_code": False})
    assert "the model brings Python code of its own; read it, then set trust_remote_code: true" in line
    assert not (tmp_path / "ran").exists()


def test_jobs_with_environments_of_their_own_look_for_themselves(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "umap", None)
    (tmp_path / "a.txt").write_text("a dog")
    umap = {"clustering": {"method": "umap_dbscan"}}
    study = language(of_folder(folder, ["model.layers.9"]), text={"folder": str(tmp_path)}, inversion=umap)
    (note,) = preflight.look(study, ROOT, deployed={"apptainer"})
    assert "looked at by the jobs" in note


def test_synsets_that_wordnet_does_not_have_are_named(data_dir, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(data_dir / "nltk_data"))
    geometry = {"concepts": {"source": "wordnet", "synsets": ["animal.n.01", "anmal.n.01"]}}
    (line,) = said(language(geometry=geometry))
    assert line.startswith("geometry.concepts.synsets: 'anmal.n.01' is no synset of WordNet")


def test_the_modules_of_an_embedded_model_are_those_that_give_a_vector_per_token():
    spec = EmbeddedModel(layers=2, width=16, heads=2, mlp_width=20)
    model = language_training.untrained(spec, 12, 8, 0).eval()
    tokens = torch.zeros(2, 3, dtype=torch.long)
    for side in ("input", "output"):
        found = set()
        for name, _ in model.named_modules():
            try:
                if name:
                    Recorder(model, {"h": Hook(module=name, side=side)})(tokens, torch.tensor([0]))
                    found.add(name)
            except HookPointError:
                continue
        # What goes into the rotary embedding is the residual stream, by accident.
        assert set(spec.modules(side)) == found - {"model.rotary_emb"}


def test_the_process_of_snakemake_stays_light():
    heavy = "{'torch', 'transformers', 'nltk', 'pandas'}"
    code = f"import sys; from saeflow import preflight; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")})


def test_concepts_of_a_model_fit_into_the_latents_of_its_saes():
    from saeflow.geometry import concepts

    kept = concepts.Concepts(("a", "b"), ("x", "y", "z"), np.array([0, 1, 1]), pd.DataFrame())
    concepts.refuse_more(kept, 2, 2)
    concepts.refuse_more(kept, 2, None)
    with pytest.raises(ValueError, match=r"geometry\.hierarchical\.parents: 1, .* 2 parents; give 2 or more"):
        concepts.refuse_more(kept, 1, None)
    with pytest.raises(ValueError, match=r"geometry\.hierarchical\.children: 1, .* a parent with 2 children"):
        concepts.refuse_more(kept, 2, 1)
