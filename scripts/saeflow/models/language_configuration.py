"""What transformers makes of a model's `config.json`: its configuration, its attention, or why it has none."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saeflow.models.language_files import config_of

log = logging.getLogger(__name__)

LOCAL = {"local_files_only": True}
"""Nothing goes to the network."""


class LanguageModelError(ValueError):
    """A model that cannot be used as the study asks; names the model's folder or key and what would be right."""


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
        return AutoConfig.from_pretrained(folder, trust_remote_code=settings["trust_remote_code"], **LOCAL)
    except Exception as error:  # checks of each class, with errors of their own kinds
        raise LanguageModelError(f"{file}: transformers cannot read it: {short(error)}") from error


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
    if not (problem := build_problem(config, settings, named)):
        return named
    if build_problem(config, settings, {}):
        return {}  # which is not the attention's fault, and told when the model is loaded
    if asked == "sdpa":
        log.warning("%s: attention: the model has no sdpa; transformers chooses", folder)
        return {}
    raise LanguageModelError(
        f"{folder}: attention: '{asked}' is not to be had ({problem}); without the key, transformers chooses"
    )


def build_problem(config: Any, settings: Mapping[str, Any], attention: Mapping[str, str]) -> str | None:
    """What transformers says against building a model; nothing if it can."""
    try:
        outline(config, settings, attention)
    except Exception as error:  # ValueError of a model, ImportError of a kernel, errors of the kernels' own
        return short(error)
    return None


def outline(config: Any, settings: Mapping[str, Any], attention: Mapping[str, str]) -> nn.Module:
    """A model without its weights, on the meta device; raises whatever transformers and the model's code raise."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=settings["trust_remote_code"], **attention
        )


def short(error: Exception, most: int = 300) -> str:
    """The first of what an error says."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else f"{said[:most]} …"
