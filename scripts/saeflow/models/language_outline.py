"""What a study asks of a language model, compared with what the model is by its files, before any weight is read.

The model is built on torch's meta device, where tensors have shapes and no numbers: a second for a model of any size.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from saeflow.config.language import Hook
from saeflow.models.hook_points import HookPointError, Recorder, find
from saeflow.models.language import LanguageModelError, check_context, load_tokenizer
from saeflow.models.language_configuration import attention_of, configuration, outline, short
from saeflow.models.language_files import ModelFilesError, files_of

_TOKENS = (2, 3)  # contexts and tokens that the outline reads


def problems(
    name: str,
    folder: Path | str,
    settings: Mapping[str, Any],
    *,
    hook_points: Sequence[Mapping[str, Any]] = (),
    context_size: int = 0,
    inner: str | None = None,
    length: int = 0,
    rank: int = 0,
) -> Iterator[str]:
    """A line per thing that the study asks and the model does not have.

    Arguments:
        name: of the model in the study.
        folder: with its files.
        settings: section `language.models.<name>` as a dict.
        hook_points: sections of its hook points.
        context_size: `language.text.context_size`.
        inner: `geometry.interventions.inner`.
        length: `inversion.optimization.length`.
        rank: `geometry.hierarchical.rank`.
    """
    folder, key = Path(folder), f"language.models.{name}"
    try:
        files_of(folder, settings["trust_remote_code"])
        load_tokenizer(folder, settings)
        config = configuration(folder, settings)
        attention = attention_of(folder, config, settings)
    except (ModelFilesError, LanguageModelError) as error:
        yield f"{key}: {error}"
        return
    try:
        # Shapes are the same in any type; experts are traced in this one alone.
        model = outline(config, settings, attention).eval().bfloat16()
    except Exception as error:  # code that is not ours, on a file that is not ours
        yield f"{key}: {folder / 'config.json'}: transformers cannot load the model: {short(error)}"
        return
    for hook in map(Hook.model_validate, hook_points):
        try:
            find(model, hook.module)
            _read(model, hook)
        except HookPointError as error:
            yield f"{key}.hook_points: {_said(error)}"
    if inner is not None:
        try:
            find(model, inner)
        except HookPointError as error:
            yield f"geometry.interventions.inner: {_said(error)} ({key})"
    sizes = {
        "language.text.context_size": context_size,
        "inversion.optimization.length with the start token": length and length + 1,
    }
    for asked, size in sizes.items():
        try:
            check_context(model, size, name, asked)
        except LanguageModelError as error:
            yield str(error)
    unembedding = model.get_output_embeddings()
    if rank and unembedding is not None and rank > (width := unembedding.weight.shape[1]):
        yield f"geometry.hierarchical.rank: {rank} exceeds the width of {name}, {width}"


def _read(model: nn.Module, hook: Hook) -> None:
    """Let the model read tokens that have no values, for the shapes at a hook point.

    Raises:
        HookPointError: it gives no vector per token.
    """
    tokens = torch.zeros(_TOKENS, dtype=torch.long, device="meta")
    try:
        # transformers looks for packed texts in tensors with values, and leaves those alone that are only traced.
        with FakeTensorMode(allow_non_fake_inputs=True):
            Recorder(model, {hook.name: hook})(tokens, torch.tensor([0]))
    except HookPointError:
        raise
    except Exception:  # some models look at numbers on their way: what they give is known when they run
        return


def _said(error: HookPointError) -> str:
    return str(error).removeprefix("hook point ")
