"""Causal language models from a folder in Hugging Face's format: loaded, checked, asked for tokens and losses."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saeflow.models.language_files import files_of

# Nothing here goes to the network, and no tokenizer forks threads of its own.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_LOCAL = {"local_files_only": True}


class LanguageModelError(ValueError):
    """A model that cannot be used as the study asks; names the model's folder or key and what would be right."""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer.

    Arguments:
        tokenizer: of transformers.
        start: id of the token that a document begins with; none if the tokenizer has none.
    """

    tokenizer: Any
    start: int | None

    @cached_property
    def encode(self) -> "Encoder":
        """Turns texts into ids."""
        return Encoder(self.tokenizer, self.special)

    def with_start(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, each behind the start token, where there is one and the text does not begin with it."""
        start = [] if self.start is None else [self.start]
        return [ids if ids[:1] == start else start + ids for ids in self.encode(texts)]

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids that are no text, wherever they stand: start, end, padding, the marks of a chat.

        The token for what a tokenizer cannot read is text where such a thing may be read, as by a vocabulary of words.
        Where bytes can stand for everything, only its name gives it, and it is as special as the others.
        """
        return _special(self.tokenizer)

    @cached_property
    def no_words(self) -> frozenset[int]:
        """Ids that no vocabulary of words has: special tokens, and the one for what the tokenizer cannot read."""
        return self.special.union(self.tokenizer.all_special_ids)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as readers see it: words with the space in front of them, never empty."""
        found = []
        for i, token in zip(ids, self.tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            if token is not None and "▁" in token:  # SentencePiece; decoding one token would drop its space
                text = token.replace("▁", " ")
            else:
                text = self.tokenizer.decode([i], clean_up_tokenization_spaces=False)
            found.append(text if text and "\ufffd" not in text else token or f"<{i}>")
        return found


@dataclass(frozen=True)
class Encoder:
    """Turns texts into ids, and adds none.

    A special token that a text spells out has its id, as in training.

    Arguments:
        tokenizer: of transformers.
        special: ids of special tokens.
    """

    tokenizer: Any
    special: frozenset[int]

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts."""
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


_UNREAD = "\U00012000 \ue000"
"""A cuneiform sign and a character for private use, which few vocabularies have."""


def _special(tokenizer: Any) -> frozenset[int]:
    """Ids of `Tokens.special`."""
    names = tokenizer.special_tokens_map
    found = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    unread = tokenizer.unk_token_id
    has_one_role = sum(value == names.get("unk_token") for value in names.values()) == 1
    if has_one_role and unread in tokenizer(_UNREAD, add_special_tokens=False)["input_ids"]:
        found.discard(unread)
    return frozenset(found - {None})


def load_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokens:
    """The tokenizer of a model's folder.

    Arguments:
        folder: with the tokenizer's files.
        settings: section `language.models.<name>` as a dict.
    Raises:
        LanguageModelError: the folder has no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings["trust_remote_code"], **_LOCAL)
    except (OSError, ValueError, KeyError) as error:
        raise LanguageModelError(f"{folder}: no tokenizer that transformers can read ({error})") from error
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Tokens(tokenizer, start)


def load(folder: Path, settings: Mapping[str, Any], device: str) -> nn.Module:
    """The model of a folder, for use: no gradients, no dropout, weights from safetensors alone.

    Arguments:
        folder: with `config.json` and weights.
        settings: section `language.models.<name>` as a dict.
        device: of the whole model, unless the section has a device map.
    Raises:
        ModelFilesError: no such model, or weights that are pickles.
        LanguageModelError: what transformers says of it: an attention implementation that it does not have, say.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files_of(folder)
    logging.disable_progress_bar()  # a job's log has no use for one
    where = {"device_map": settings["device_map"]} if settings["device_map"] else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, settings["dtype"]),
            attn_implementation=settings["attention"],
            use_safetensors=True,
            trust_remote_code=settings["trust_remote_code"],
            **where,
            **_LOCAL,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise LanguageModelError(f"{folder}: transformers cannot load it: {error}") from error
    model = model if where else model.to(device)
    return model.eval().requires_grad_(False)


def check(model: nn.Module, tokens: Tokens, context_size: int, name: str) -> None:
    """Refuse a tokenizer that is not the model's, and contexts longer than it can read.

    Raises:
        LanguageModelError: names the model, the sizes and the key.
    """
    rows, words = model.get_input_embeddings().weight.shape[0], len(tokens.tokenizer)
    if words > rows:
        raise LanguageModelError(
            f"language.models.{name}: the tokenizer has {words} tokens, the model embeds {rows}: they do not belong "
            "together"
        )
    check_context(model, context_size, name)


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
    return getattr(model.config, "max_position_embeddings", None)


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
