"""Packages of an extra, installed from its lock for one test module alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def install(extra: str, folder: Path) -> Path:
    """Install envs/<extra>.lock into a folder; skips the test where it cannot be had."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", folder]
    installed = subprocess.run([*pip, "-r", ROOT / f"envs/{extra}.lock"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"envs/{extra}.lock cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    return folder


def environment(extra: Path, *, without: str) -> dict[str, str]:
    """Of a process that finds an extra's packages and the library beside those of this environment.

    Arguments:
        without: beginning of the variables that it must not have.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return own | {"PYTHONPATH": os.pathsep.join([str(extra), str(ROOT / "scripts")])}
