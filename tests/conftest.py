"""Shapes and types of annotated arrays are checked in tests, and only there."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

jaxtyping.install_import_hook("saeflow", "array_checks.check")
torch.set_num_threads(1)
# The same examples at each run.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with real data, named by SAEFLOW_DATA."""
    if "SAEFLOW_DATA" not in os.environ:
        pytest.skip("SAEFLOW_DATA names no folder with real data")
    return Path(os.environ["SAEFLOW_DATA"])


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Array checks off, for tests of what the library itself says to arrays of the wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
