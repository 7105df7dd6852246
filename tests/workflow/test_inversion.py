"""Inversion in the workflow: every stage once for real, stages that can be left out, the same bytes again."""

import json

import pandas as pd
import pytest
from conftest import Project, copy_project

from saeflow.publish.site import data
from saeflow.reproduce import manifest

STUDY = "inversion_smoke"
SEARCHES = {"random", "dataset", "soft", "soft_projected", "gcg", "epo"}
FEATURES = 6
BUDGET = 300


@pytest.fixture(scope="module")
def inverted(tmp_path_factory):
    """The inversion of a small study, and its folder."""
    project = Project(copy_project(tmp_path_factory.mktemp("project")), tmp_path_factory.mktemp("work"))
    project.snakemake("inversion", "site", study=STUDY)
    folder = project.work / "results" / STUDY / "language" / "inversion" / "words" / "model.layers.0" / "batchtopk"
    return project, folder


def test_every_chosen_feature_has_a_text_by_each_search(inverted):
    _, folder = inverted
    chosen = [one["feature"] for one in json.loads((folder / "selection.json").read_text())["chosen"]]
    assert len(chosen) == FEATURES
    texts = pd.read_parquet(folder / "texts.parquet")
    assert set(texts["method"]) == SEARCHES
    assert all(set(own["feature"]) == set(chosen) for _, own in texts.groupby("method"))


def test_searches_keep_to_their_budget_and_gradients_find_more_than_chance(inverted):
    _, folder = inverted
    curves = pd.read_parquet(folder / "curves.parquet")
    spent = curves.groupby("method")["evaluations"].max()
    assert spent.drop("epo").max() <= BUDGET
    assert spent["gcg"] < spent["epo"] <= spent["gcg"] + BUDGET
    best = pd.read_parquet(folder / "texts.parquet").groupby("method")["ratio"].median()
    assert best["soft"] > best["gcg"] > best["random"]


def test_explanations_tell_text_held_out_apart_better_than_chance(inverted):
    _, folder = inverted
    explained = pd.read_parquet(folder / "explanations.parquet")
    assert len(explained) == FEATURES
    assert explained["detection"].mean() > explained["random_detection"].mean()


def test_the_site_has_the_chosen_features_and_their_contexts(inverted):
    project, folder = inverted
    site = project.work / "results" / STUDY / "site"
    (tables,) = data.read(site / "inversion.js").values()
    chosen = {feature for feature, role in zip(tables["map"]["feature"], tables["map"]["role"], strict=True) if role}
    assert chosen == set(pd.read_parquet(folder / "texts.parquet")["feature"])
    index = data.read(site / "features" / "words" / "model.layers.0" / "batchtopk" / "index.js")
    assert len(index["says"]) == 64


def test_a_stage_that_is_switched_off_is_not_planned(inverted):
    project, _ = inverted
    path = project.root / "config" / "studies" / f"{STUDY}.yaml"
    (path.parent / "clusters.yaml").write_text(
        path.read_text().replace("inversion:\n", "inversion:\n  pipeline: {optimize: false, explain: false}\n")
    )
    planned = project.planned("inversion", "--forceall", study="clusters")
    assert {"select_inversion_features", "draw_inversion_figures"} <= set(planned)
    assert not {"invert_features", "explain_inversion_features"} & set(planned)


def test_inversion_is_the_same_bytes_again(inverted):
    project, folder = inverted
    before = manifest(folder, [folder])
    assert len(before) > 15
    project.snakemake("inversion", "--forcerun", "select_inversion_features", study=STUDY)
    assert manifest(folder, [folder]) == before
