"""Causal language models of transformers as networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.language import Hook, LanguageModel
from saeflow.datasets.batch import Batch
from saeflow.datasets.inputs.texts import Texts
from saeflow.models import language
from saeflow.models.hook_points import Recorder
from saeflow.models.language_files import folder_of
from saeflow.models.networks import NETWORKS, Hooked, Network


@NETWORKS.register("transformers")
class Transformers(Network):
    """A folder in Hugging Face's format, which a study names, downloads or trains."""

    reads = "texts"
    n_members = 1

    def __init__(self, model: nn.Module, hooks: Mapping[str, Hook], name: str = "", start: int = 0) -> None:
        """
        Arguments:
            hooks: hook points by name.
            name: of the model in the study.
            start: id of a token that the model reads.
        """
        self.model, self.hooks = model, tuple(hooks)
        self._recorder, self._name, self._start = Recorder(model, hooks), name, start

    @classmethod
    def open(cls, files: Sequence[Path], given: Texts, settings: Mapping[str, Any], device: str) -> Self:
        folder, name = folder_of(files), settings["name"]
        model = language.load(folder, settings["section"], device)
        tokenizer = language.load_tokenizer(folder, settings["section"])
        language.check(model, tokenizer, given.context_size, name)
        section = LanguageModel.model_validate(settings["section"])
        return cls(model, section.hooks, name, tokenizer.start or 0)

    def widths(self) -> dict[str, int]:
        tokens = torch.full((1, 2), self._start, device=language.input_device(self.model))
        return {hook: value.shape[1] for hook, value in self._recorder(tokens, torch.tensor([0])).items()}

    def values(self, batch: Batch) -> dict[Hooked, Float[Tensor, "n_rows d"]]:
        tokens = batch.items.to(language.input_device(self.model), non_blocking=True)
        return {(0, hook): value for hook, value in self._recorder(tokens, batch.rows).items()}

    def metadata(self, member: int, hook: str) -> dict[str, Any]:
        return {"model": self._name, "hook_point": hook}
