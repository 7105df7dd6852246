"""Causal language models from a folder in Hugging Face's format: loaded, checked, asked for tokens and losses."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saeflow.models import causality, language_weights
from saeflow.models.language_configuration import (
    LOCAL,
    LanguageModelError,
    attention_of,
    build_problem,
    configuration,
    short,
)
from saeflow.models.language_files import files_of, whole_numbers
from saeflow.models.language_tokens import Encoder, Tokens, load_tokenizer

__all__ = [
    "Encoder",
    "LanguageModelError",
    "Tokens",
    "check",
    "check_context",
    "context_limit",
    "input_device",
    "load",
    "load_tokenizer",
    "loss_sum",
]

log = logging.getLogger(__name__)

_PADDED = 1.2  # rows of an embedding to tokens of its tokenizer, at most, where rows are padded to a round number
# Keys of a configuration for the most tokens that a model reads, by family.
_LIMITS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "context_length")


def load(folder: Path, settings: Mapping[str, Any], device: str) -> nn.Module:
    """The model of a folder, for use: no gradients, no dropout, weights from safetensors alone, and every one of them.

    Arguments:
        folder: with `config.json` and weights.
        settings: section `language.models.<name>` as a dict.
        device: of the whole model, unless the section has a device map.
    Raises:
        ModelFilesError: no such model, weights that are pickles, or files that are not whole.
        LanguageModelError: weights that are not the model's or no numbers, or what transformers says of it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files = files_of(folder, settings["trust_remote_code"])
    config = configuration(folder, settings)
    logging.disable_progress_bar()  # a job's log has no use for one
    where = {"device_map": settings["device_map"]} if settings["device_map"] else {}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, settings["dtype"]),
            use_safetensors=True,
            trust_remote_code=settings["trust_remote_code"],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **attention_of(folder, config, settings),
            **where,
            **LOCAL,
        )
    except (torch.OutOfMemoryError, MemoryError, LanguageModelError):
        raise
    except Exception as error:  # code that is not ours, on files that are not ours
        file = folder / "config.json" if build_problem(config, settings, {}) else folder
        raise LanguageModelError(f"{file}: transformers cannot load the model: {short(error)}") from error
    if problem := language_weights.problem(model, found, config, bool(where), whole_numbers(folder, files)):
        raise LanguageModelError(f"{folder}: {problem}")
    model = model if where else model.to(device)
    return model.eval().requires_grad_(False)


def check(model: nn.Module, tokens: Tokens, context_size: int, name: str) -> None:
    """Refuse a tokenizer that is not the model's, contexts longer than it can read, and a model that is not causal.

    Tokens that were added to a tokenizer and that the model does not embed are no fault; a text that has one is refused
    where it is encoded.

    Raises:
        LanguageModelError: names the model, the sizes and the key.
    """
    rows, words = model.get_input_embeddings().weight.shape[0], tokens.tokenizer.vocab_size
    if words > rows:
        raise LanguageModelError(
            f"language.models.{name}: the tokenizer has {words} tokens, the model embeds {rows}: they do not belong "
            "together"
        )
    if rows > _PADDED * len(tokens.tokenizer):
        log.warning(
            "language.models.%s: the tokenizer has %d tokens, the model embeds %d: is it the model's own?",
            *(name, len(tokens.tokenizer), rows),
        )
    check_context(model, context_size, name)
    ids = [i for i in range(min(rows, words)) if i not in tokens.special] or [0]
    try:
        ahead = causality.looks_ahead(model, torch.tensor(ids, device=input_device(model)), context_size)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # code that is not ours
        raise LanguageModelError(
            f"language.models.{name}: {type(model).__name__} cannot read a text of tokens ({short(error)})"
        ) from error
    if ahead is None:
        log.warning("language.models.%s: whether it is causal could not be measured", name)
    if ahead:
        raise LanguageModelError(
            f"language.models.{name}: {type(model).__name__} is not causal, its logits change with tokens that come "
            "later; take a model that predicts the next token, no encoder"
        )


def check_context(model: nn.Module, size: int, name: str, key: str = "language.text.context_size") -> None:
    """Refuse more tokens than a model can read.

    Arguments:
        size: tokens that are asked for by the key.
        name: of the model in the study.
    Raises:
        LanguageModelError: names the key, the model and its limit.
    """
    limit = context_limit(model)
    if limit is not None and size > limit:
        raise LanguageModelError(f"{key}: {size} exceeds what {name} can read, {limit} tokens")


def context_limit(model: nn.Module) -> int | None:
    """Most tokens that a model can read; none where its configuration does not say."""
    config = model.config.get_text_config(decoder=True)
    try:
        return next((n for n in (getattr(config, key, None) for key in _LIMITS) if isinstance(n, int) and n > 0), None)
    except NotImplementedError:  # what XLNet says instead of having no such key
        return None


def input_device(model: nn.Module) -> torch.device:
    """Where token ids must be."""
    return model.get_input_embeddings().weight.device


@torch.no_grad()
def loss_sum(
    model: nn.Module, tokens: Int[Tensor, "batch context"], is_text: Bool[Tensor, "batch context"]
) -> tuple[Float[Tensor, ""], int]:
    """Summed cross-entropy, in nats, of the model's predictions of text tokens, and their number.

    Arguments:
        tokens: ids, on the device of the model's embedding.
        is_text: tokens that are to be predicted; the first of a context never is.
    """
    logits = model(tokens, use_cache=False).logits[:, :-1]
    wanted = is_text[:, 1:].to(logits.device)
    losses = cross_entropy(logits[wanted].float(), tokens[:, 1:].to(logits.device)[wanted], reduction="none")
    return losses.double().sum().cpu(), int(wanted.sum())
