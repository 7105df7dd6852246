"""The typed study: a module for each section of the file, and what they must agree on.

Nothing heavier than pydantic is imported here: the Snakefile reads a study at every start.
"""

import importlib
import warnings
from typing import Any

# Where names are that version 0.1 had in one module; they leave with the next version.
_MOVED = {
    "reading": ("load", "parse", "read"),
    "sections": ("ConfigError",),
    "study": ("Study",),
    "images": ("Classifiers", "Data"),
    "saes": ("SAEs", "Training"),
    "language": ("Language",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MOVED.items():
        if name in names:
            warnings.warn(f"saeflow.config.{name} is now saeflow.config.{module}.{name}", FutureWarning, stacklevel=2)
            return getattr(importlib.import_module(f"saeflow.config.{module}"), name)
    raise AttributeError(f"module 'saeflow.config' has no attribute '{name}'")
