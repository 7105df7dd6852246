"""The smoke study inside the image that containers/ describes, built here on Debian instead of the CUDA base."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import workflow_image
from workflow_image import WorkflowImage

from saeflow.reproduce import read_manifest

ROOT = Path(__file__).parents[2]
RESULTS = Path("results/smoke")
IMAGE = Path("containers/saeflow.sif")  # in the folder that Snakemake works in
# The study is built in a folder of its own, so that the checkout must be named.
BOUND = f"--apptainer-args=--nv --bind {ROOT}"
CONTAINER = ("--workflow-profile", ROOT / "workflow/profiles/container", BOUND)

PAGES = ("report.html", "site/index.html")  # with a list of what is installed
SOFTWARE = r"(?s)<pre>python .*?</pre>"
CONDA_INSIDE = ("--sdm", "conda", "apptainer", "--conda-base-path", "/opt/conda", BOUND)


def snakemake(
    work: Path, *arguments: object, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on the smoke study in a folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", root / "Snakefile", *arguments, "--cores", "2"]
    study = ["--directory", work, "--configfile", root / "config/studies/smoke.yaml"]
    return subprocess.run(
        list(map(str, [*command, *study])),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=900,
    )


def succeeded(run: subprocess.CompletedProcess[str]) -> str:
    """What Snakemake said."""
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-8000:]
    return run.stdout + run.stderr


def assert_equal_but_for_software(work: Path, other: Path) -> None:
    """All files of two studies have the same bytes, apart from the lists of what is installed."""
    ours, theirs = (read_manifest(folder / RESULTS / "MANIFEST.sha256") for folder in (work, other))
    assert len(ours) > 200
    assert {name for name in ours | theirs if ours.get(name) != theirs.get(name)} <= set(PAGES)
    for page in PAGES:
        ours, theirs = ((folder / RESULTS / page).read_text() for folder in (work, other))
        assert re.sub(SOFTWARE, "", ours) == re.sub(SOFTWARE, "", theirs)


def offer(image: Path, work: Path) -> Path:
    """Put an image where the workflow looks for it."""
    (work / IMAGE.parent).mkdir(parents=True, exist_ok=True)
    (work / IMAGE).symlink_to(image)
    return work


@pytest.fixture(scope="module")
def image() -> WorkflowImage:
    missing = [name for name in workflow_image.PROGRAMS if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; as root: sh tests/integration/setup/containers.sh")
    if os.getuid():
        pytest.skip("an image is built by root alone")
    if not version("torch").endswith("+cpu"):
        pytest.skip("the CPU build of torch is not in use here, and an image of the CUDA build is gigabytes")
    try:
        return workflow_image.build()
    except workflow_image.NoBaseError as error:
        pytest.skip(f"no Debian root file system to build on: {error}")


@pytest.fixture(scope="module")
def built(image, tmp_path_factory) -> Path:
    """Folder with the study built inside the image, by the profile that ships."""
    work = offer(image.root, tmp_path_factory.mktemp("contained"))
    said = succeeded(snakemake(work, *CONTAINER))
    # Every job but the two that only collect files.
    assert (
        said.count(f"Activating singularity image {IMAGE}") == int(re.search(r"(\d+) of \1 steps", said).group(1)) - 1
    )
    return work


def test_the_image_holds_the_locked_packages_and_not_the_library(image):
    pins = "".join((ROOT / "envs" / name).read_text() for name in ("requirements.lock", "torch-cpu.lock"))
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", pins, re.MULTILINE))
    installed = dict(line.split("==") for line in image.freeze.splitlines())
    assert installed.items() - locked.items() == {(name, installed[name]) for name in ("pip", "uv")}
    assert {"torch", "snakemake", "zarr", "pyarrow"} <= set(installed)
    # The jobs take it from the project, where an edit of it counts.
    assert "No module named 'saeflow'" in image.run("python", "-c", "import saeflow").stderr


def test_a_study_in_the_image_has_the_bytes_of_a_local_one(built, tmp_path):
    succeeded(snakemake(tmp_path))
    assert_equal_but_for_software(built, tmp_path)
    versions = [re.search(SOFTWARE, (work / RESULTS / "report.html").read_text()).group() for work in (built, tmp_path)]
    # Debian's Python may be another one.
    assert len({version.partition("\n")[2] for version in versions}) == 1


def test_a_rule_finds_its_own_environment_in_the_image(image, built, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(built, work, symlinks=True)
    results = work / RESULTS
    # What one job of each environment makes, and what was made of it last.
    for name in ("MANIFEST.sha256", "verification.txt", "tables/saes.parquet"):
        (results / name).unlink()
    next(results.glob("saes/SimpleNN-full/*.metrics.parquet")).unlink()
    said = succeeded(snakemake(work, "verify", "--rerun-triggers", "mtime", *CONDA_INSIDE))
    for name in ("data", "publish", "torch"):
        digest = hashlib.md5((ROOT / f"envs/{name}.yaml").read_bytes()).hexdigest()
        assert f"conda-envs/{digest}" in said, name
    assert_equal_but_for_software(work, built)


def test_a_rules_environment_has_its_packages_alone(image):
    digest = hashlib.md5((ROOT / "envs/data.yaml").read_bytes()).hexdigest()
    python = f"/conda-envs/{digest}/bin/python"
    assert image.run(python, "-c", "import numpy, sklearn.datasets, pydantic, torchvision.datasets").returncode == 0
    for package in ("transformers", "pandas", "snakemake"):
        assert f"No module named '{package}'" in image.run(python, "-c", f"import {package}").stderr


def test_environments_changed_after_the_image_are_refused(image, tmp_path):
    project, work = tmp_path / "project", offer(image.root, tmp_path / "work")
    project.mkdir()
    for part in ("Snakefile", "config", "envs", "scripts", "workflow"):
        source = ROOT / part
        shutil.copytree(source, project / part) if source.is_dir() else shutil.copy2(source, project / part)
    with open(project / "envs/data.yaml", "a") as file:
        file.write("  - xarray=2026.1.0\n")
    run = snakemake(work, "datasets", *CONDA_INSIDE, root=project)
    assert run.returncode != 0
    assert "Unable to find environment in container image" in run.stdout + run.stderr


def test_a_package_that_the_image_lacks_is_not_taken_from_the_host(image, tmp_path):
    poorer = tmp_path / "root"
    subprocess.run(["cp", "--archive", "--link", image.root, poorer], check=True)
    (package,) = poorer.glob("opt/saeflow/venv/lib/python3*/site-packages/sklearn")
    shutil.rmtree(package)
    work = offer(poorer, tmp_path / "work")

    run = snakemake(work, "datasets", *CONTAINER)
    assert run.returncode != 0
    assert "ModuleNotFoundError: No module named 'sklearn'" in run.stdout + run.stderr
    assert not (work / RESULTS / "datasets/digits.npz").exists()

    # Without the filter in saeflow/__init__.py the host's package would have served, unnoticed.
    succeeded(snakemake(work, "datasets", *CONTAINER, SAEFLOW_ISOLATE="0"))
