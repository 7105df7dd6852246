"""Snakemake's own deployment of envs/*.yaml, with a channel of this machine and py-rattler in the place of conda.

The channel has every package at the locked version, but empty: what is tested is that the files are well formed, that a
solver finds exactly these versions, and that rules run in the environments made of them. Their Python hands over to the
one that runs the tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SPECS = sorted((ROOT / "envs").glob("*.yaml"))
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
PYTHON = "3.11.9"


@dataclass(frozen=True)
class Conda:
    """A `conda` on the path, and the folder with the environments that Snakemake makes."""

    path: str
    environments: Path

    def snakemake(self, work: Path, *arguments: object, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "snakemake", "--snakefile", root / "Snakefile", *arguments, "--cores", "1"]
        where = ["--directory", work, "--conda-prefix", self.environments]
        study = ["--configfile", root / "config/studies/smoke.yaml"]
        return subprocess.run(
            list(map(str, [*command, *where, *study])),
            env={**os.environ, "PATH": self.path}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def made(self) -> dict[str, dict[str, str]]:
        """Versions of the packages of each environment, by the file that it was made from."""
        return {
            (self.environments / f"{folder.name}.yaml").read_text(): dict(
                re.fullmatch(r"(.+)-([^-]+)-[^-]+", record.stem).groups()
                for record in (folder / "conda-meta").glob("*.json")
            )
            for folder in self.environments.iterdir()
            if folder.is_dir()
        }


def locked() -> dict[str, str]:
    """Versions in the locks, by conda's names."""
    pins = "".join((ROOT / "envs" / name).read_text() for name in ("requirements.lock", "torch-cuda.lock"))
    found = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", pins, re.MULTILINE))
    return {CONDA_NAMES.get(name, name): version for name, version in found.items()}


@pytest.fixture(scope="module")
def conda(tmp_path_factory) -> Conda:
    create = [sys.executable, ROOT / "benchmarks" / "environments.py", "create", "rattler"]
    created = subprocess.run(create, capture_output=True, text=True)
    if created.returncode:
        pytest.skip(f"py-rattler cannot be installed here: {created.stderr.strip().splitlines()[-1]}")
    rattler = created.stdout.strip()
    folder = tmp_path_factory.mktemp("conda")
    channel = [rattler, HERE / "conda_standin.py", "write-channel", PYTHON, sys.executable]
    settings = {"CHANNEL": folder / "channel", "PREFIX": folder / "root"}
    subprocess.run(channel, input=json.dumps(locked()), text=True, check=True, env=os.environ | settings)
    program = folder / "bin" / "conda"
    program.parent.mkdir()
    variables = " ".join(f"{name}={value}" for name, value in settings.items())
    program.write_text(f'#!/bin/sh\n{variables} exec {rattler} {HERE}/conda_standin.py "$@"\n')
    program.chmod(0o755)
    return Conda(f"{program.parent}:{os.environ['PATH']}", folder / "environments")


@pytest.fixture(scope="module")
def work(conda, tmp_path_factory) -> Path:
    """Folder of a study for which Snakemake has made every environment."""
    folder = tmp_path_factory.mktemp("work")
    run = conda.snakemake(folder, "--sdm", "conda", "--conda-create-envs-only")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return folder


def test_each_file_becomes_an_environment_of_exactly_what_it_names(conda, work):
    made = conda.made()
    # The study has no language models.
    assert set(made) == {path.read_text() for path in SPECS if path.stem not in ("language", "packages")}
    for text, packages in made.items():
        named = [spec.split("=")[0] for spec in yaml.safe_load(text)["dependencies"]]
        assert packages == {name: locked().get(name, PYTHON) for name in named}


def test_a_rule_runs_in_its_environment_with_the_bytes_of_a_run_without(conda, work, tmp_path):
    for folder, arguments in ((work, ("--sdm", "conda")), (tmp_path, ())):
        run = conda.snakemake(folder, "datasets", *arguments)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
        assert ("Activating conda environment" in run.stdout + run.stderr) == bool(arguments)
        # Made before, and not again.
        assert "Creating conda environment" not in run.stdout + run.stderr
    written = [folder / "results/smoke/datasets/digits.npz" for folder in (work, tmp_path)]
    assert written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("numpy==0.0.1", "numpy ==0.0.1"),  # no such version in the channel
        ("numpy 2.4", "missing range specifier"),  # conda would guess
    ],
)
def test_an_environment_that_cannot_be_made_stops_the_study_before_its_jobs(conda, tmp_path, changed, said):
    root = tmp_path / "project"
    root.mkdir()
    for part in ("Snakefile", "config", "envs", "scripts", "workflow"):
        source = ROOT / part
        shutil.copytree(source, root / part) if source.is_dir() else shutil.copy2(source, root / part)
    specs = root / "envs" / "data.yaml"
    specs.write_text(specs.read_text().replace(f"numpy=={locked()['numpy']}", changed))
    run = conda.snakemake(tmp_path, "datasets", "--sdm", "conda", root=root)
    assert run.returncode != 0
    assert "Could not create conda environment" in run.stdout + run.stderr
    assert said in run.stdout + run.stderr
    assert not (tmp_path / "results").exists()
