"""A study in several jobs where one would do: more jobs, the same results."""

import json
import shutil

import pytest
import yaml
from conftest import ROOT, Project, copy_project

from saeflow.reproduce import manifest

SHARDS = (1, 2, 3)


def study(shards: int) -> dict:
    """The smoke study with one architecture, without injection, and with SAEs enough for three jobs."""
    smoke = yaml.safe_load((ROOT / "config/studies/smoke.yaml").read_text())
    del smoke["injection"]
    smoke["classifiers"] |= {"architectures": ["ConvNet"], "epochs": 2}
    smoke["classifiers"]["roles"] = {"full": smoke["classifiers"]["roles"]["full"]}
    # No multiple of the other: the borders of parts and of batches lie apart.
    smoke["activations"] |= {"chunk_rows": 150, "batch_size": 256, "shards": shards}
    smoke["saes"]["variants"]["topk"] = {"architecture": "topk", "d_sae": 48, "k": 8}
    smoke["saes"]["shards"] = shards
    smoke["features"]["cards"] = {}
    return smoke


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> dict[int, Project]:
    """The study in one, two and three shards; the later ones go on from the networks of the first, two only to SAEs."""
    root = copy_project(tmp_path_factory.mktemp("project"))
    projects = {}
    for shards in SHARDS:
        (root / "config" / "studies" / f"shards{shards}.yaml").write_text(yaml.safe_dump(study(shards)))
        project = Project(root, tmp_path_factory.mktemp(f"work{shards}") / "work")
        if projects:
            made = projects[1].results
            for folder in ("datasets", "models"):
                shutil.copytree(made / folder, project.results / folder)
        else:
            project.work.mkdir()
        project.snakemake(*(["saes"] if shards == 2 else []), study=f"shards{shards}")
        projects[shards] = project
    return projects


def outside_the_stores(project: Project) -> list[str]:
    return [line for line in project.manifest().splitlines() if "  activations/" not in line]


def chunks(project: Project) -> dict[str, list[str]]:
    """Digests of every store's chunks, in the order of their rows."""
    found = {}
    for path in sorted((project.results / "activations").rglob("manifest.json")):
        parts = json.loads(path.read_text())["parts"]
        digests = [digest for part in parts for digest in part["sha256"]["activations"]]
        found[str(path.relative_to(project.results))] = digests
    return found


def test_every_result_outside_the_stores_is_the_same_in_three_shards(builds):
    lines = outside_the_stores(builds[1])
    for result in ("sae_weights.safetensors", "tables/saes.parquet", "tables/training.parquet", "report.html"):
        assert any(line.endswith(result) for line in lines), result
    assert outside_the_stores(builds[3]) == lines


@pytest.mark.parametrize("shards", SHARDS[1:])
def test_chunks_and_saes_are_the_same_for_any_number_of_shards(builds, shards):
    one, several = (builds[n].results for n in (1, shards))
    assert chunks(builds[shards]) == chunks(builds[1])
    saes = manifest(one, [one / "saes"])
    assert len([name for name in saes if name.endswith(".safetensors")]) == 6
    assert manifest(several, [several / "saes"]) == saes


def test_each_job_wrote_its_own_part_and_its_own_saes(builds):
    stores = builds[3].results / "activations" / "ConvNet-full-s0" / "last.pre" / "train"
    assert sorted(path.name for path in stores.glob("part-*")) == ["part-0", "part-1", "part-2"]
    logs = builds[3].results / "logs"
    assert len(list((logs / "capture_activations").glob("*.log"))) == 3
    assert len(list((logs / "train_saes").rglob("*.log"))) == 3
    assert builds[3].planned(study="shards3") == {}


def test_one_shard_needs_no_job_more(builds):
    jobs = builds[1].planned("--forceall", study="shards1")
    assert jobs["capture_activations"] == jobs["train_saes"] == 1
    assert "gather_activations" not in jobs
