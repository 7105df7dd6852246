"""Causal language models from a folder in Hugging Face's format: loaded, checked, asked for tokens and losses."""

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saeflow.models import causality, language_weights
from saeflow.models.language_files import check_tokenizer, config_of, files_of

log = logging.getLogger(__name__)

# Nothing here goes to the network, and no tokenizer forks threads of its own.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_LOCAL = {"local_files_only": True}
# Keys of a configuration for the most tokens that a model reads, by family.
_LIMITS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "context_length")


class LanguageModelError(ValueError):
    """A model that cannot be used as the study asks; names the model's folder or key and what would be right."""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer.

    Arguments:
        tokenizer: of transformers.
        start: id of the token that a document begins with; none if the tokenizer has none.
        embedded: ids that the model embeds, from 0; all of the tokenizer's if not given.
    """

    tokenizer: Any
    start: int | None
    embedded: int | None = None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, without special tokens.

        Raises:
            LanguageModelError: a text has a token that the model does not embed; names it.
        """
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        for ids in found if self.embedded is not None else ():
            if ids and (highest := max(ids)) >= self.embedded:
                raise LanguageModelError(
                    f"a text has the token '{self.tokenizer.convert_ids_to_tokens(highest)}' (id {highest}), but the "
                    f"model embeds the ids below {self.embedded} alone; take it out of the text"
                )
        return found

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


def configuration(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The configuration of a folder's model, as transformers reads it.

    Arguments:
        folder: with `config.json`.
        settings: section `language.models.<name>` as a dict.
    Raises:
        ModelFilesError: `config.json` is no whole JSON.
        LanguageModelError: it is of a model that transformers does not have, or that is no causal language model.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    said, file = config_of(folder), folder / "config.json"
    kind, code = said.get("model_type"), said.get("auto_map") or {}
    if kind not in CONFIG_MAPPING and code and not settings["trust_remote_code"]:
        raise LanguageModelError(
            f"{file}: the model brings Python code of its own; read it, then set trust_remote_code: true"
        )
    if kind is None and not code:
        raise LanguageModelError(f"{file}: names no model_type; a model is a folder in Hugging Face's format")
    if kind not in CONFIG_MAPPING and not code:
        version = said.get("transformers_version", __version__)
        by = f" (transformers {version} wrote the file)" if version != __version__ else ""
        raise LanguageModelError(
            f"{file}: transformers {__version__} has no model_type '{kind}'{by}; take a model that it has"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (code and settings["trust_remote_code"]):
        raise LanguageModelError(
            f"{file}: transformers has no causal language model of model_type '{kind}'; take a model that predicts the "
            "next token"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=settings["trust_remote_code"], **_LOCAL)
    except Exception as error:  # checks of each class, with errors of their own kinds
        raise LanguageModelError(f"{file}: transformers cannot read it: {_short(error)}") from error


def load_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokens:
    """The tokenizer of a model's folder.

    Arguments:
        folder: with the tokenizer's files.
        settings: section `language.models.<name>` as a dict.
    Raises:
        ModelFilesError, LanguageModelError: the folder has no tokenizer that transformers can read, or its model is
            none; names the file.
    """
    from tokenizers import __version__
    from transformers import AutoTokenizer

    config = configuration(folder, settings) if (folder / "config.json").is_file() else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings["trust_remote_code"], **_LOCAL)
    except Exception as error:  # tokenizers raises bare ones
        check_tokenizer(folder)
        what = f"{folder}: no tokenizer that transformers can read"
        if (file := folder / "tokenizer.json").is_file():
            what = f"{file}: tokenizers {__version__} cannot read it, a newer one may have written it"
        raise LanguageModelError(f"{what} ({_short(error)})") from error
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Tokens(tokenizer, start, getattr(config and config.get_text_config(decoder=True), "vocab_size", None))


def load(folder: Path, settings: Mapping[str, Any], device: str) -> nn.Module:
    """The model of a folder, for use: no gradients, no dropout, weights from safetensors alone, and every one of them.

    Arguments:
        folder: with `config.json` and weights.
        settings: section `language.models.<name>` as a dict.
        device: of the whole model, unless the section has a device map.
    Raises:
        ModelFilesError: no such model, weights that are pickles, or files that are not whole.
        LanguageModelError: weights that are not the model's, or what transformers says of it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files_of(folder, settings["trust_remote_code"])
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
            **_LOCAL,
        )
    except (torch.OutOfMemoryError, MemoryError, LanguageModelError):
        raise
    except Exception as error:  # code that is not ours, on files that are not ours
        file = folder / "config.json" if _build_problem(config, settings, {}) else folder
        raise LanguageModelError(f"{file}: transformers cannot load the model: {_short(error)}") from error
    if problem := language_weights.problem(model, found, config, bool(where)):
        raise LanguageModelError(f"{folder}: {problem}")
    model = model if where else model.to(device)
    return model.eval().requires_grad_(False)


def attention_of(folder: Path, config: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """The attention implementation that a study names, as transformers' argument; nothing where transformers chooses.

    `sdpa`, which is what transformers tries first, stands for its choice where a model does not have it: the same
    function by another kernel.

    Raises:
        LanguageModelError: one that the model or this machine does not have.
    """
    if (asked := settings["attention"]) is None:
        return {}
    named = {"attn_implementation": asked}
    if not (problem := _build_problem(config, settings, named)):
        return named
    if _build_problem(config, settings, {}):
        return {}  # which is not the attention's fault, and told when the model is loaded
    if asked == "sdpa":
        log.warning("%s: attention: the model has no sdpa; transformers chooses", folder)
        return {}
    raise LanguageModelError(
        f"{folder}: attention: '{asked}' is not to be had ({problem}); without the key, transformers chooses"
    )


def _build_problem(config: Any, settings: Mapping[str, Any], attention: Mapping[str, str]) -> str | None:
    """What transformers says against building a model, without its weights."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(
                copy.deepcopy(config), trust_remote_code=settings["trust_remote_code"], **attention
            )
    except Exception as error:  # ValueError of a model, ImportError of a kernel, errors of the kernels' own
        return _short(error)
    return None


def _short(error: Exception, most: int = 300) -> str:
    """The first of what an error says."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else f"{said[:most]} …"


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
    check_context(model, context_size, name)
    special = set(tokens.tokenizer.all_special_ids)
    ids = [i for i in range(min(rows, words)) if i not in special] or [0]
    try:
        ahead = causality.looks_ahead(model, torch.tensor(ids, device=input_device(model)), context_size)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # code that is not ours
        raise LanguageModelError(
            f"language.models.{name}: {type(model).__name__} cannot read a text of tokens ({_short(error)})"
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
