"""What the environment of a rule takes from the locked one."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

ENVS = Path(__file__).parents[2] / "envs"
spec = importlib.util.spec_from_file_location("rule_environments", ENVS / "rule_environments.py")
rule_environments = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rule_environments)


def names(*requirements: str) -> set[str]:
    return {package.name.lower() for package in rule_environments.closure(map(Requirement, requirements))}


def test_a_package_comes_with_what_it_needs_and_nothing_else():
    assert names("scikit-learn") == {"scikit-learn", "numpy", "scipy", "joblib", "threadpoolctl", "narwhals"} | names(
        "joblib"
    )
    assert "torch" not in names("scikit-learn", "pandas")


def test_extras_are_followed_where_they_are_asked_for():
    assert "sortedcontainers" in names("hypothesis")
    assert "pytest" not in names("jaxtyping")
    assert "pandas" in names("hypothesis[pandas]")
    assert "pandas" not in names("hypothesis")


@pytest.mark.parametrize("path", sorted(ENVS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_environment_can_be_taken_from_the_locked_one(path):
    packages = {package.name.lower() for package in rule_environments.closure(rule_environments.requirements(path))}
    assert "numpy" in packages
    assert ("torch" in packages) == (path.stem in ("data", "torch", "language", "packages"))
    assert ("torchvision" in packages) == (path.stem == "data")
    assert not packages & {"snakemake", "pytest"}


def test_another_version_than_the_installed_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"numpy==1.0 is asked for, numpy {version('numpy')} is installed"):
        names("numpy==1.0")
    with pytest.raises(PackageNotFoundError):
        names("no-such-package")


def test_a_spec_that_is_not_exact_is_refused(tmp_path):
    (tmp_path / "loose.yaml").write_text("dependencies:\n  - python=3.11\n  - numpy=2.4.6\n")
    with pytest.raises(InvalidRequirement, match=r"numpy=2\.4\.6"):
        rule_environments.requirements(tmp_path / "loose.yaml")
