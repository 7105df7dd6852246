"""A model's unembedding from its files, without the rest of the model: which rows are tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import safe_open

from saeflow.models import language

_NAMES = ("lm_head.weight", "embed_out.weight", "output.weight")
_TIED = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight", "gpt_neox.embed_in.weight")


class UnembeddingError(ValueError):
    """A model whose unembedding cannot be found, or is not linear; names the folder."""


def load(folder: Path, settings: Mapping[str, Any]) -> tuple[Float[np.ndarray, "v d"], Int[np.ndarray, " n"]]:
    """The unembedding, and its rows that count: of the tokenizer's tokens but for special and unused ones.

    Arguments:
        folder: in Hugging Face's format.
        settings: section `language.models.<name>` as a dict.
    Raises:
        UnembeddingError: no matrix by a known name.
    """
    gamma = _matrix(folder)
    tokens = language.load_tokenizer(folder, settings)
    words = ((token, i) for token, i in tokens.tokenizer.get_vocab().items() if i not in tokens.no_words)
    rows = sorted(number for token, number in words if not _is_unused(token))
    return gamma, np.array([number for number in rows if number < len(gamma)])


def bias(folder: Path, n_rows: int) -> Float[np.ndarray, " v"]:
    """What the unembedding adds to the logits: 0 for most models."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in _NAMES:
                if (name := name.replace(".weight", ".bias")) in tensors.keys():  # noqa: SIM118
                    return tensors.get_tensor(name).float().numpy()
    return np.zeros(n_rows, np.float32)


def _is_unused(token: str) -> bool:
    """Whether a token is one that no text has: `<unused12>`, `[unused12]`, `<0x0A>` apart."""
    return token.strip("<>[]").lower().startswith(("unused", "reserved_special"))


def _matrix(folder: Path) -> np.ndarray:
    files = sorted(folder.glob("*.safetensors"))
    found: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    config = json.loads((folder / "config.json").read_text())
    names = _NAMES if not config.get("tie_word_embeddings", False) else ()
    name = next((name for name in (*names, *_TIED, *_NAMES) if name in found), None)
    if name is None:
        raise UnembeddingError(f"{folder}: has no unembedding by a known name ({', '.join(_NAMES + _TIED)})")
    with safe_open(found[name], "pt") as tensors:
        # float32 holds bfloat16, which numpy does not have, exactly.
        return tensors.get_tensor(name).float().numpy()
