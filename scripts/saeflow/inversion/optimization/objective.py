"""What is optimised: the pre-activation of a latent while the model reads a prompt; every forward pass is counted."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saeflow.config.language import Hook
from saeflow.models.hook_points import activations_at
from saeflow.models.language import input_device
from saeflow.models.module_maps import ROUNDED, deviation
from saeflow.sae.architectures import Gated, SparseAutoencoder

Position = Literal["last", "any"] | int

BACKWARD = 2
"""What a backward pass costs, in forward passes."""


class ObjectiveError(ValueError):
    """A model in which texts cannot be searched for by gradients; says why."""


@dataclass(frozen=True)
class Readout:
    """x . weight + bias: a latent's activation before anything gates it to zero, since a gate has no gradient.

    Arguments:
        weight: a row per latent, in latent units.  Shape [n_features, d_in].
        bias: Shape [n_features].
    """

    weight: Float[Tensor, "n_features d_in"]
    bias: Float[Tensor, " n_features"]

    @classmethod
    def of(cls, sae: SparseAutoencoder, features: Int[Tensor, " n_features"]) -> "Readout":
        """Encoder rows of some latents; where a latent fires, its activation is what this gives."""
        chosen = features.to(sae.device)
        weight = sae.W_enc[:, chosen].T.float()
        if isinstance(sae, Gated):
            weight = weight * sae.r_mag[chosen].exp().float()[:, None]
            offset = sae.b_mag[chosen]
        else:
            offset = sae.b_enc[chosen]
        return cls(weight, offset.float() - weight @ sae.b_dec.float())


@dataclass
class Cost:
    """What a search has spent.

    Arguments:
        forward, backward: prompts passed through the model and back.
        seconds: of wall time, inside the model alone.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    @property
    def evaluations(self) -> int:
        """Forward passes, a backward pass counted as BACKWARD of them."""
        return self.forward + BACKWARD * self.backward


@dataclass
class Objective:
    """Scores of prompts.

    A prompt is the start token, where the model has one, and some tokens of text, as many for all prompts of a call:
    nothing is padded, so that a tokenizer needs no pad token.

    Arguments:
        model: a causal language model, without gradients of its own.
        name, hook: the hook point that the SAE was trained on.
        readout: of the features, on the model's device.
        start: id of the start token; none if the model has none.
        position: where the feature is to fire: `last` token, `any` (the highest of all), or a place counted from 0. The
            first token of a context is left out of `any` where there is no start token: its activations have another
            norm than all others.
        batch_size: prompts per forward pass.
    """

    model: nn.Module
    name: str
    hook: Hook
    readout: Readout
    start: int | None
    position: Position = "last"
    batch_size: int = 256
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.device = input_device(self.model)
        embedding = self.model.get_input_embeddings()
        with torch.no_grad():
            # Through the module, not its weight: some scale what they look up.
            self.embeddings = embedding(torch.arange(embedding.weight.shape[0], device=self.device)).float()

    @torch.no_grad()
    def check(self) -> None:
        """Refuse a model that reads more of a token than its embedding, such as a table of its own in every block:
        what gradients search in would be another model.

        Raises:
            ObjectiveError: names the hook point.
        """
        ids = torch.arange(4, device=self.device)[None] % len(self.embeddings)
        read, _ = activations_at(self.model, self.name, self.hook, input_ids=ids)
        try:
            given, _ = activations_at(
                self.model, self.name, self.hook, inputs_embeds=self.embeddings[ids].to(self._dtype)
            )
        except (TypeError, ValueError, AttributeError, NotImplementedError):
            given = torch.empty(0)
        if deviation(given.float(), read.float()) > ROUNDED:
            raise ObjectiveError(
                f"what the model has at {self.name} depends on more than the embeddings of tokens, in which texts are "
                "searched for; a study with the section inversion cannot have this model in language.models"
            )

    @property
    def n_features(self) -> int:
        return len(self.readout.bias)

    def of(self, features: Int[Tensor, " k"]) -> "Objective":
        """The same for some of the features alone, with one account of the cost."""
        chosen = features.to(self.readout.weight.device)
        return replace(self, readout=Readout(self.readout.weight[chosen], self.readout.bias[chosen]))

    @torch.no_grad()
    def all_scores(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "n n_features"]:
        """Scores of every feature, from one forward pass per prompt."""
        parts = [torch.empty(0, self.n_features)]
        for (batch,) in _batches(self.batch_size, tokens):
            with self._counted(len(batch)):
                states, _ = self._states(input_ids=self._ids(batch))
                parts.append(self._at(states @ self.readout.weight.T + self.readout.bias).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def scores(self, tokens: Int[Tensor, "n length"], features: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Score of each prompt for a feature of its own.

        Arguments:
            tokens: ids of text, without the start token.
            features: numbers of rows of the readout.
        """
        parts = [torch.empty(0)]
        for batch, own in _batches(self.batch_size, tokens, features):
            with self._counted(len(batch)):
                states, _ = self._states(input_ids=self._ids(batch))
                parts.append(self._own(states, own).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def profiles(self, tokens: Int[Tensor, "n length"], features: Int[Tensor, " n"]) -> Float[Tensor, "n length"]:
        """What `scores` is taken from: the feature of each prompt at every token of its text."""
        parts = [torch.empty(0, tokens.shape[1])]
        for batch, own in _batches(self.batch_size, tokens, features):
            with self._counted(len(batch)):
                states, _ = self._states(input_ids=self._ids(batch))
                parts.append(self._values(states, own).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def scores_and_losses(
        self, tokens: Int[Tensor, "n length"], features: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Score of each prompt, and its mean cross-entropy in nats per predicted token: how unlike text it is."""
        scores, losses = [torch.empty(0)], [torch.empty(0)]
        for batch, own in _batches(self.batch_size, tokens, features):
            ids = self._ids(batch)
            with self._counted(len(batch)):
                states, output = activations_at(self.model, self.name, self.hook, onward=True, input_ids=ids)
                scores.append(self._own(self._text(states), own).cpu())
                logits = output.logits[:, :-1].float()
                wanted = ids[:, 1:].to(logits.device)
                loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
                losses.append(loss.mean(1).cpu())
        return torch.cat(scores), torch.cat(losses)

    def gradients(
        self,
        tokens: Int[Tensor, "n length"],
        features: Int[Tensor, " n"],
        fluency: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n length d"]:
        """Gradient of score - fluency x cross-entropy with respect to the embedding of each token.

        Arguments:
            fluency: weight of the cross-entropy, for each prompt; 0 if not given.
        """
        parts = []
        weights = torch.zeros(len(tokens)) if fluency is None else fluency
        size = max(1, self.batch_size // 4)  # a backward pass holds every layer's activations
        for batch, own, weight in _batches(size, tokens, features, weights):
            ids = self._ids(batch)
            embedded = self.embeddings[ids].to(self._dtype).requires_grad_()
            with torch.enable_grad(), self._counted(len(batch), len(batch)):
                if fluency is None:
                    states, _ = self._states(inputs_embeds=embedded)
                    value = self._own(states, own).sum()
                else:
                    states, output = activations_at(
                        self.model, self.name, self.hook, onward=True, inputs_embeds=embedded
                    )
                    logits = output.logits[:, :-1].float()
                    # Of the tokens as inputs alone: what a token costs as a target is seen when candidates are scored.
                    loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
                    loss = loss.view(len(ids), -1).mean(1)
                    value = (self._own(self._text(states), own) - weight.to(loss) * loss).sum()
                (gradient,) = torch.autograd.grad(value, embedded)
            parts.append(self._text(gradient).float())
        return torch.cat(parts) if parts else self.embeddings.new_empty(0, tokens.shape[1], self.embeddings.shape[1])

    @torch.no_grad()
    def expected(
        self, tokens: Int[Tensor, "n length"], allowed: Bool[Tensor, " n_rows"], k: int
    ) -> Int[Tensor, "n length k"]:
        """The k allowed tokens that the model expects most at each place; without a start token, the first place gets
        what is expected at the second."""
        parts = []
        for (batch,) in _batches(self.batch_size, tokens):
            with self._counted(len(batch)):
                logits = self.model(input_ids=self._ids(batch), use_cache=False).logits[:, :-1]
                logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
                parts.append(logits.topk(k, dim=-1).indices.cpu())
        found = torch.cat(parts)
        return found if self.start is not None else torch.cat([found[:, :1], found], dim=1)

    def soft_scores(self, embedded: Float[Tensor, "n length d"], features: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Score of embeddings in place of tokens; gradients flow, and are counted with it."""
        parts = []
        for batch, own in _batches(self.batch_size, embedded, features):
            if self.start is not None:
                first = self.embeddings[self.start].expand(len(batch), 1, -1)
                batch = torch.cat([first, batch], dim=1)
            with self._counted(len(batch), len(batch) * embedded.requires_grad):
                states, _ = self._states(inputs_embeds=batch.to(self._dtype))
                parts.append(self._own(states, own))
        return torch.cat(parts)

    @contextmanager
    def _counted(self, forward: int, backward: int = 0) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.cost.seconds += time.perf_counter() - began
        self.cost.forward += forward
        self.cost.backward += backward

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def _ids(self, tokens: Int[Tensor, "n length"]) -> Int[Tensor, "n context"]:
        ids = tokens.to(self.device)
        if self.start is None:
            return ids
        return torch.cat([ids.new_full((len(ids), 1), self.start), ids], dim=1)

    def _states(self, **inputs: Tensor) -> tuple[Float[Tensor, "n length d_in"], None]:
        states, output = activations_at(self.model, self.name, self.hook, **inputs)
        return self._text(states), output

    def _text(self, values: Float[Tensor, "n context d"]) -> Float[Tensor, "n length d"]:
        """Without the start token."""
        return values if self.start is None else values[:, 1:]

    def _own(self, states: Float[Tensor, "n length d_in"], features: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        if self.position == "last":
            states = states[:, -1:]
        return self._at(self._values(states, features)[..., None])[:, 0]

    def _values(self, states: Float[Tensor, "n length d_in"], features: Int[Tensor, " n"]) -> Float[Tensor, "n length"]:
        weight, bias = (t[features.to(t.device)] for t in (self.readout.weight, self.readout.bias))
        return torch.einsum("nld,nd->nl", states.float(), weight) + bias[:, None]

    def _at(self, values: Float[Tensor, "n length k"]) -> Float[Tensor, "n k"]:
        if self.position == "last":
            return values[:, -1]
        if self.position == "any":
            return values[:, int(self.start is None and values.shape[1] > 1) :].amax(1)
        if not 0 <= self.position < values.shape[1]:
            raise ValueError(f"position: {self.position} is outside a text of {values.shape[1]} tokens")
        return values[:, self.position]


def _batches(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of as many rows; none of no rows."""
    for first in range(0, len(tensors[0]), size):
        yield tuple(tensor[first : first + size] for tensor in tensors)
