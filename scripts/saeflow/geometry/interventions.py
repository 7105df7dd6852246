"""Concept vectors added to the residual stream, at the final layer and after an inner block, beside directions of equal
norm that mean nothing."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp
from torch import Tensor, nn

from saeflow.config.language import Hook
from saeflow.geometry.concept_vectors import concept_vector
from saeflow.geometry.concepts import Concepts
from saeflow.geometry.steering import divergence, effect
from saeflow.models.hook_points import Recorder, replaced
from saeflow.reproduce import child_seed


@dataclass(frozen=True)
class Direction:
    """One direction and the words that it is measured on, which it was not fitted on.

    Arguments:
        concept: its name.
        kind: parent, child, random or shuffled.
        vector: in whitened coordinates; scaled so that a dose of 1 raises the logits of the words that it was fitted
            on by 1 on average. Shape [d].
        own, siblings, others: rows of the vocabulary. `siblings` are words of the same parent, for a child.
        families: children of the parent by row of the vocabulary, of words that are measured; -1 for all others.
    """

    concept: str
    kind: str
    vector: Float[np.ndarray, " d"]
    own: Bool[np.ndarray, " v"]
    siblings: Bool[np.ndarray, " v"]
    others: Bool[np.ndarray, " v"]
    families: Int[np.ndarray, " v"]


class Measured(NamedTuple):
    """Effect of one direction at one dose, mean over contexts."""

    target: float
    """Centred logit change of the direction's own words."""
    other: float
    """Mean absolute centred change of words of other parents."""
    siblings: float
    """Centred change of its siblings' words; NaN for a parent."""
    sibling_kl: float
    """KL of the distribution over the parent's children, steered against not, a child being its measured words: 0 if
    a step keeps their ratios, as one along the parent should."""
    word_kl: float
    """The same over the single words."""
    kl: float
    """KL(steered || unsteered) of the whole next-token distribution."""
    mass: float
    """Mass of its own words after the step, less before."""


def directions(
    g: Float[np.ndarray, "v d"],
    shuffled: Float[np.ndarray, "v d"],
    concepts: Concepts,
    rows: Int[np.ndarray, " n"],
    seed: int,
) -> Iterator[Direction]:
    """Vectors of every parent and child from half of its words, to be measured on the other half, and their controls.

    Arguments:
        g, shuffled: whitened rows of the vocabulary, and the same in a random order.
        rows: row of each of the concepts' words.
    """
    rng = np.random.default_rng(child_seed(seed, "interventions"))
    half = concepts.halves(rng)

    def mask(words: np.ndarray) -> np.ndarray:
        found = np.zeros(len(g), bool)
        found[rows[words]] = True
        return found

    def scaled(vector: np.ndarray) -> np.ndarray:
        return vector / (vector @ vector)

    vectors, families = [], []
    for p, name in enumerate(concepts.parents):
        member = concepts.parent == p
        own, others = mask(member & ~half), mask(~member)
        none = np.zeros(len(g), bool)
        vector = concept_vector(g[rows[member & half]])
        vectors.append(vector)
        families.append(np.full(len(g), -1))
        families[p][rows[member & ~half]] = concepts.child[member & ~half]
        noise = rng.normal(size=g.shape[1])
        step = scaled(vector)
        wrong = concept_vector(shuffled[rows[member & half]])
        length = np.linalg.norm(step)
        yield Direction(name, "parent", step, own, none, others, families[p])
        yield Direction(name, "random", noise * length / np.linalg.norm(noise), own, none, others, families[p])
        yield Direction(name, "shuffled", wrong * length / np.linalg.norm(wrong), own, none, others, families[p])
    for c, name in enumerate(concepts.children):
        p, member = concepts.parent_of[c], concepts.child == c
        if (member & half).sum() < 3 or not (member & ~half).any():
            continue
        delta = concept_vector(g[rows[member & half]]) - vectors[p]
        siblings = (concepts.parent == p) & ~member & ~half
        yield Direction(
            name, "child", scaled(delta), mask(member & ~half), mask(siblings), mask(concepts.parent != p), families[p]
        )


def measured(base: Float[np.ndarray, "n v"], steered: Float[np.ndarray, "n v"], direction: Direction) -> Measured:
    """Effect of a step from logits without and with it."""
    change = steered - base
    change = change - change.mean(1, keepdims=True)
    mean = change.mean(0)
    found = effect(mean, direction.own, direction.others)
    inside = direction.own | direction.siblings
    before, after = (_softmax(logits)[:, direction.own].sum(1) for logits in (base, steered))
    return Measured(
        target=found.target,
        other=found.other,
        siblings=float(mean[direction.siblings].mean()) if direction.siblings.any() else float("nan"),
        sibling_kl=float(divergence(*(_by_child(logits, direction.families) for logits in (base, steered))).mean()),
        word_kl=float(divergence(base[:, inside], steered[:, inside]).mean()),
        kl=float(divergence(base, steered).mean()),
        mass=float((after - before).mean()),
    )


def _by_child(logits: np.ndarray, families: np.ndarray) -> np.ndarray:
    """Logits of children: log of their words' summed weights."""
    return np.stack([logsumexp(logits[:, families == c], axis=1) for c in np.unique(families[families >= 0])], axis=1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def at_final_layer(
    base: Float[np.ndarray, "n v"], g: Float[np.ndarray, "v d"], direction: Direction, doses: Sequence[float]
) -> list[Measured]:
    """Doses added to what the unembedding reads: logits change by dose g(y) . v, whatever the context."""
    change = g @ direction.vector
    return [measured(base, base + dose * change, direction) for dose in doses]


class InnerBlock:
    """A model that is steered after one of its modules, at the last token of each context.

    Arguments:
        model: of Hugging Face's causal language models.
        module: path of the module, whose output is changed.
        tokens: contexts.  Shape [n, context].
        rows: rows of the unembedding that count.
        to_residual: residual-stream vector of whitened coordinates.
    """

    def __init__(
        self,
        model: nn.Module,
        module: str,
        tokens: Int[Tensor, "n context"],
        rows: Int[np.ndarray, " v"],
        to_residual: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self._model, self._hook = model, Hook(module=module)
        self._tokens = tokens.to(model.get_input_embeddings().weight.device)
        self._rows, self._to_residual = torch.from_numpy(rows), to_residual
        self._last = torch.zeros(tokens.shape, dtype=torch.bool)
        self._last[:, -1] = True
        record = Recorder(model, {module: self._hook})
        x = record(self._tokens, self._last.flatten().nonzero().squeeze(1))[module]
        self.norm = float(x.float().norm(dim=1).mean())
        """Mean length of the activations there."""
        # Models of the library's own compute the last place alone, if asked; code that comes with a model need not.
        can_ask = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._asked = {"logits_to_keep": 1} if can_ask else {}
        self.base = self._logits()

    @torch.no_grad()
    def _logits(self) -> Float[np.ndarray, "n v"]:
        logits = self._model(self._tokens, use_cache=False, **self._asked).logits[:, -1].float().cpu()
        return logits[:, self._rows].double().numpy()

    def measured(self, direction: Direction, share: float) -> Measured:
        """Effect of a step whose length is a share of the mean length of the activations."""
        v = self._to_residual(direction.vector)
        step = torch.from_numpy(v * (share * self.norm / np.linalg.norm(v)))

        def add(x: Tensor) -> Tensor:
            return x + step.to(x)

        with replaced(self._model, self._hook.module, self._hook, self._last, add):
            return measured(self.base, self._logits(), direction)
