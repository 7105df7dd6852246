"""Shapes and types of annotated arrays are checked in tests, and only there."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

jaxtyping.install_import_hook("saeflow", "array_checks.check")
torch.set_num_threads(1)


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
