"""Geometry in the workflow: a target per phase, built once for real, the same bytes again."""

import pandas as pd
import pytest
import yaml
from conftest import Project, copy_project

from saeflow.config.geometry import SCHEDULED, SHUFFLED, TEACHER
from saeflow.publish.site import data
from saeflow.reproduce import manifest

PHASES = ("phase1_teacher", "phase2_baseline", "phase3_hierarchical", "phase4_steering")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The geometry of a small study, and its folder."""
    project = Project(copy_project(tmp_path_factory.mktemp("project")), tmp_path_factory.mktemp("work"))
    project.snakemake("geometry", "site", study="geometry_smoke")
    return project, project.work / "results" / "geometry_smoke" / "geometry" / "words"


def test_phases_are_targets_and_the_first_waits_for_no_sae(measured):
    project, _ = measured
    for phase in PHASES:
        assert not project.planned(f"geometry/{phase}", study="geometry_smoke")
    again = project.planned("geometry/phase1_teacher", "--forcerun", "build_concepts", study="geometry_smoke")
    assert {"build_concepts", "measure_geometry", "write_phase1_teacher"} <= set(again)
    assert "train_hierarchical_saes" not in again


def test_a_study_without_hierarchical_saes_has_the_first_phase_alone(measured):
    project, _ = measured
    path = project.root / "config" / "studies" / "geometry_smoke.yaml"
    study = yaml.safe_load(path.read_text())
    study["geometry"]["hierarchical"] = None
    (path.parent / "phase1.yaml").write_text(yaml.safe_dump(study))
    planned = project.planned("geometry", "--forceall", study="phase1")
    assert {"measure_geometry", "write_phase1_teacher"} <= set(planned)
    assert not {"train_hierarchical_saes", "evaluate_hierarchical_saes", "write_phase2_baseline"} & set(planned)


def test_every_phase_has_a_table_with_targets_and_a_page_with_its_figures(measured):
    _, folder = measured
    for phase in PHASES:
        page = (folder / f"{phase}.md").read_text()
        shown = {line.partition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")}
        assert shown
        assert all((folder / figure).is_file() for figure in shown)
        assert len(pd.read_csv(folder / "tables" / f"{phase}.csv"))
    verdicts = pd.read_csv(folder / "tables" / "phase1_teacher.csv")
    assert {"model", "shuffled rows", "random parents", "euclidean"} == set(verdicts["case"])
    # Neither a model of 150 steps nor rows that mean nothing may pass.
    assert "fail" in set(verdicts.loc[verdicts["case"] == "model", "verdict"])
    assert "fail" in set(verdicts.loc[verdicts["case"] == "shuffled rows", "verdict"])
    compared = pd.read_csv(folder / "tables" / "phase3_hierarchical.csv")
    assert set(compared["comparison"]) == {f"{arm} against {SCHEDULED}" for arm in (TEACHER, SHUFFLED)}
    arms = pd.read_parquet(folder / "tables" / "arms.parquet")
    assert len(arms) == 5 * 2 * 2
    assert arms["ev"].notna().all()


def test_the_site_has_the_verdicts(measured):
    project, folder = measured
    shown = data.read(project.work / "results" / "geometry_smoke" / "site" / "geometry.js")["words"]
    verdicts = pd.read_csv(folder / "tables" / "phase1_teacher.csv")
    assert shown["verdicts"]["statistic"] == verdicts["statistic"].tolist()
    assert set(shown) == {"verdicts", "points", "arms", "comparisons", "interventions"}


def test_geometry_is_the_same_bytes_again(measured):
    project, folder = measured
    before = manifest(folder, [folder])
    project.snakemake("geometry", "--forcerun", "build_concepts", "label_contexts", study="geometry_smoke")
    assert manifest(folder, [folder]) == before


def test_the_study_at_full_scale_is_planned(measured, data_dir, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(data_dir / "nltk_data"))
    project, _ = measured
    planned = project.planned("geometry", study="gemma-2b-geometry")
    assert {"download_language_model", "measure_geometry", "train_hierarchical_saes", "intervene"} <= set(planned)
