"""Packages that some keys of a study need: whether they are installed, and how they are."""

from importlib.util import find_spec

_TRACKING = "pip install --no-deps --require-hashes -r envs/tracking.lock"
_DEFAULT = "make env"
HOW_TO_INSTALL = {
    "accelerate": _DEFAULT,
    "datasets": _DEFAULT,
    "flash_attn": "pip install flash-attn",
    "nltk": _DEFAULT,
    "tensorboardX": _TRACKING,
    "torch": _DEFAULT,
    "transformers": _DEFAULT,
    "umap": 'pip install ".[umap]"',
    "wandb": _TRACKING,
}
"""By the name of the module."""


def missing(module: str) -> str | None:
    """What to say of a package that is not installed, behind the key that needs it; None if it is there."""
    if find_spec(module):
        return None
    return f"needs the package '{module}', which is not installed: {HOW_TO_INSTALL[module]}"
