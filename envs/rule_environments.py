"""Make the environments of the rules out of the one that runs this script; install.sh calls it for an image.

    python rule_environments.py FOLDER

For each file of conda specs here, FOLDER/<md5 of the file> gets the packages that it names and what they need, and no
other: in /conda-envs Snakemake looks for it there. The packages come from the hashed locks, not from a conda channel:
their files are hard links to those of the environment that they are taken from, which is on the same disk.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from importlib.util import cache_from_source
from pathlib import Path

import yaml
from packaging.requirements import Requirement

HERE = Path(__file__).parent
PYPI_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # where conda-forge has another one


def requirements(specs: Path) -> list[Requirement]:
    """What a file of conda specs names, python apart, by its names on PyPI.

    Raises:
        InvalidRequirement: a spec that is not `name==version`.
    """
    names = [
        spec
        for spec in yaml.safe_load(specs.read_text(encoding="utf-8"))["dependencies"]
        if not spec.startswith("python=")
    ]
    found = list(map(Requirement, names))
    for requirement in found:
        requirement.name = PYPI_NAMES.get(requirement.name, requirement.name)
    return found


def closure(wanted: Iterable[Requirement]) -> list[Distribution]:
    """The installed packages that requirements name, and all that these need.

    Raises:
        PackageNotFoundError: one is not installed.
        ValueError: one is installed in another version.
    """
    found: dict[tuple[str, ...], Distribution] = {}
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name, *sorted(requirement.extras))
        if key in found:
            continue
        package = found[key] = distribution(requirement.name)
        if not requirement.specifier.contains(package.version, prereleases=True):
            raise ValueError(f"{requirement} is asked for, {package.name} {package.version} is installed")
        for needed in map(Requirement, package.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                waiting.append(needed)
    return list(found.values())


def make(specs: Path, folder: Path) -> Path:
    """An environment with the packages of one file of conda specs; returns its folder."""
    target = folder / hashlib.md5(specs.read_bytes(), usedforsecurity=False).hexdigest()
    venv.create(target, clear=True, symlinks=True)
    probe = [target / "bin" / "python", "-c", "import site; print(site.getsitepackages()[0])"]
    packages = Path(subprocess.run(probe, check=True, capture_output=True, encoding="utf-8").stdout.strip())
    for package in closure(requirements(specs)):
        for file in package.files or ():
            # Commands lie outside; no rule calls one.
            if file.parts[0] != "..":
                compiled = [cache_from_source(file)] if file.suffix == ".py" else []
                for name in (file, *compiled):
                    link(Path(package.locate_file(name)), packages / name)
    for file in HERE.glob("torchvision_schemas.*"):
        shutil.copy(file, packages)
    return target


def link(source: Path, target: Path) -> None:
    if source.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.yaml")):
        make(path, Path(sys.argv[1]))
