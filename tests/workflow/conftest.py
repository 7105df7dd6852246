"""Real Snakemake runs: on a copy of the project, in folders of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale without any letter that is not English, which Python does not put right by itself."""
PARTS = ("Snakefile", "config", "envs", "scripts", "workflow")


@dataclass(frozen=True)
class Project:
    """A copy of the project that a test may edit, and the folder that it builds in."""

    root: Path
    work: Path

    def command(self, *arguments: str, study: str = "smoke") -> list[str]:
        study_file = self.root / "config" / "studies" / f"{study}.yaml"
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", self.root / "Snakefile"]
        where = ["--directory", self.work, "--cores", "2", "--configfile", study_file]
        # Targets first: --configfile and --config take whatever follows them.
        return list(map(str, [*snakemake, *arguments, *where]))

    def snakemake(
        self,
        *arguments: str,
        study: str = "smoke",
        check: bool = True,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end; its output is in the failure message."""
        # A study must not depend on what the shell exports.
        own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS",)}
        run = subprocess.run(
            self.command(*arguments, study=study), capture_output=True, text=True, env=own | environment, timeout=900
        )
        if check:
            assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-8000:]
        return run

    def planned(self, *arguments: str, study: str = "smoke") -> dict[str, int]:
        """Jobs by rule that a dry run would start; targets without a script are left out."""
        run = self.snakemake("--dry-run", *arguments, study=study)
        jobs = {}
        for line in (run.stdout + run.stderr).partition("Job stats:")[2].partition("total")[0].splitlines():
            words = line.split()
            if len(words) == 2 and words[1].isdigit() and words[0] != "all":
                jobs[words[0]] = int(words[1])
        return jobs

    @property
    def results(self) -> Path:
        return self.work / "results" / "smoke"

    def manifest(self) -> str:
        return (self.results / "MANIFEST.sha256").read_text()


def copy_project(root: Path) -> Path:
    for part in PARTS:
        source = ROOT / part
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, root / part, ignore=ignore) if source.is_dir() else shutil.copy2(source, root / part)
    return root


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The smoke study, built once. Tests that change it take a copy (`fresh`)."""
    root = tmp_path_factory.mktemp("project")
    project = Project(copy_project(root), tmp_path_factory.mktemp("work"))
    project.snakemake()
    return project


@pytest.fixture
def fresh(built: Project, tmp_path: Path) -> Project:
    """A copy of the built study and of its project, for a test to spoil.

    The project's files stay where they are, times and all, because Snakemake knows them by path; a test that edits one
    gives it back as it was.
    """
    work = tmp_path / "work"
    shutil.copytree(built.work, work, symlinks=True)
    return Project(built.root, work)
