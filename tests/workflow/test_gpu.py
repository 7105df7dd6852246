"""What a job on a GPU needs of the workflow, as far as it shows without one."""

import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, Project, copy_project

from saeflow.reproduce import ENVIRONMENT

PROBE = """
configfile: f"{workflow.basedir}/config/config.yaml"
include: "workflow/rules/common.smk"

rule probe:
    output:
        "environment",
    shell:
        "cat /proc/self/environ > {output}"
"""


def test_jobs_have_their_environment_before_their_process_starts(tmp_path, tmp_path_factory):
    root = copy_project(tmp_path_factory.mktemp("project"))
    (root / "Probe").write_text(PROBE)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        root / "Probe",
        "--directory",
        tmp_path,
        "--cores",
        "1",
    ]
    bare = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    subprocess.run([*command, "environment"], env=bare, capture_output=True, check=True)
    # The kernel keeps it as it was at the start, whatever a program does to its own later.
    started_with = (tmp_path / "environment").read_text().split("\0")
    assert ENVIRONMENT == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUTF8": "1"}
    assert set(map("=".join, ENVIRONMENT.items())) <= set(started_with)
    # Two checkouts may share one environment of Python: a job's library is that of its own.
    (path,) = (entry for entry in started_with if entry.startswith("PYTHONPATH="))
    assert path.removeprefix("PYTHONPATH=").split(os.pathsep)[0] == str(root / "scripts")


@pytest.mark.parametrize("name", ["saeflow.Dockerfile", "saeflow.def"])
def test_images_state_the_environment_too_for_runtimes_that_empty_it(name):
    text = (ROOT / "containers" / name).read_text()
    assert [item for item in map("=".join, ENVIRONMENT.items()) if item not in text] == []


def test_rules_that_compute_ask_for_a_gpu_and_others_do_not(tmp_path):
    smoke = yaml.safe_load((ROOT / "config/studies/smoke.yaml").read_text())
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(smoke | {"compute": {"device": "cuda"}}))
    run = Project(ROOT, tmp_path).snakemake("--dry-run", "--resources", "gpu=1", study=tmp_path / "gpu")
    asking, rule = set(), None
    for line in (run.stdout + run.stderr).splitlines():
        words = line.split()
        rule = words[1].rstrip(":") if words[:1] in (["rule"], ["localrule"]) else rule
        if words[:1] == ["resources:"] and "gpu=1" in line:
            asking.add(rule)
    assert asking == {
        *("train_classifiers", "capture_activations", "train_saes", "evaluate_saes", "analyze_features"),
        *("train_concept_saes", "capture_injection", "inject"),
    }


def test_a_study_on_a_gpu_has_the_same_bytes_twice(tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: needs a GPU and its driver")
    smoke = yaml.safe_load((ROOT / "config/studies/smoke.yaml").read_text())
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(smoke | {"compute": {"device": "cuda"}}))
    first, second = (Project(ROOT, tmp_path / name) for name in ("first", "second"))
    for project in (first, second):
        project.work.mkdir()
        project.snakemake("--resources", "gpu=1", study=tmp_path / "gpu")
    assert first.manifest() == second.manifest()
