"""A job imports the packages of its own environment, and not those that Snakemake's search path would add."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
# As Snakemake starts a script: the path of the interpreter outside comes behind the job's own.
JOB = f"import sys; sys.path += sys.argv[1:] + [{str(SCRIPTS)!r}]; import saeflow, only_outside"


@pytest.mark.parametrize(
    "folder",
    [
        "outside/lib/python3.11/site-packages",
        "usr/lib/python3/dist-packages",
        "mnt/snakemake_searchpaths/item_3",  # the same inside a container
    ],
)
def test_a_package_that_only_the_host_has_is_missing_in_a_job(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "only_outside.py").touch()
    # What makes it a job.
    (tmp_path / "mnt/snakemake_searchpaths").mkdir(parents=True, exist_ok=True)
    job = [sys.executable, "-c", JOB, tmp_path / folder, tmp_path / "mnt/snakemake_searchpaths"]
    isolated = subprocess.run(job, capture_output=True, text=True)
    assert "No module named 'only_outside'" in isolated.stderr
    monkeypatch.setenv("SAEFLOW_ISOLATE", "0")
    assert subprocess.run(job).returncode == 0


def test_a_jobs_own_packages_and_the_library_stay(tmp_path):
    (tmp_path / "snakemake_searchpaths").mkdir()
    probe = f"{JOB.removesuffix(', only_outside')}, numpy, yaml; print(sys.path[0])"
    job = subprocess.run(
        [sys.executable, "-c", probe, tmp_path / "snakemake_searchpaths"], capture_output=True, text=True, check=True
    )
    assert job.stdout.strip() == str(SCRIPTS)
