"""A model's unembedding: what makes logits of a state, and which of its rows are tokens."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from saeflow.models import language, readout


class UnembeddingError(ValueError):
    """A model whose logits are no linear function of what its unembedding reads; names the folder."""


class Unembedding(NamedTuple):
    """Logits are gamma h + bias, up to a cap on them.

    Arguments:
        gamma: a row for each token, with the number by which the model multiplies its logits.  Shape [v, d].
        bias: 0 for most models.  Shape [v].
        rows: those that count, of the tokenizer's tokens but for special and unused ones.  Shape [n].
    """

    gamma: Float[np.ndarray, "v d"]
    bias: Float[np.ndarray, " v"]
    rows: Int[np.ndarray, " n"]


def load(folder: Path, settings: Mapping[str, Any]) -> Unembedding:
    """The unembedding that a model computes with, in float32.

    Arguments:
        folder: in Hugging Face's format.
        settings: of section `language.models.<name>`, `dtype` and `trust_remote_code`.
    Raises:
        UnembeddingError: there is none, or the model does more with what it gives than scale and cap it.
    """
    # All that it computes here is the logits of single tokens: any attention will do.
    model = language.load(folder, {**settings, "attention": None, "device_map": None}, "cpu")
    try:
        found = readout.linear(model)
    except readout.ReadoutError as error:
        raise UnembeddingError(f"{folder}: geometry cannot read this model: {error}") from error
    tokens = language.load_tokenizer(folder, settings)
    words = ((token, i) for token, i in tokens.tokenizer.get_vocab().items() if i not in tokens.no_words)
    rows = sorted(number for token, number in words if not is_unused(token))
    gamma, bias = found.matrix.cpu().numpy(), found.bias.cpu().numpy()
    return Unembedding(gamma, bias, np.array([number for number in rows if number < len(gamma)]))


_UNUSED = re.compile(r"[<\[]\|?\w*?(?:unused|reserved|placeholder|extra)\w*?\d+\|?[>\]]", re.IGNORECASE)


def is_unused(token: str) -> bool:
    """Whether a token's text says that no text has it: `<unused12>`, `[unused12]`, `<|reserved_special_token_3|>`."""
    return _UNUSED.fullmatch(token) is not None
