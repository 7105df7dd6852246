"""Contexts labelled by the concept that the model is about to name, with what its unembedding reads there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saeflow.config.language import Hook
from saeflow.geometry.concepts import Concepts
from saeflow.models import readout
from saeflow.models.hook_points import Recorder
from saeflow.models.language import Tokens
from saeflow.reproduce import write_arrays

NONE = -1
SPLITS = ("train", "select", "test")
_LOGITS_BYTES = 1 << 28


class Labels(NamedTuple):
    """Concept of each context; -1 for none."""

    parent: Int[np.ndarray, " n"]
    child: Int[np.ndarray, " n"]
    mass: Float[np.ndarray, " n"]
    """Mass that the model puts on the words of the most likely parent."""


@dataclass(frozen=True)
class LabelledContexts:
    """Chosen contexts.

    Arguments:
        h: what the unembedding reads, in float32.  Shape [n, d].
        next_token: the token that follows in the text.  Shape [n].
        parent, child: labels, -1 for none.  Shape [n].
        split: 0 to train on, 1 to match latents on, 2 to measure on.  Shape [n].
    """

    h: Float[np.ndarray, "n d"]
    next_token: Int[np.ndarray, " n"]
    parent: Int[np.ndarray, " n"]
    child: Int[np.ndarray, " n"]
    split: Int[np.ndarray, " n"]

    def part(self, name: str) -> "LabelledContexts":
        """One of SPLITS."""
        rows = self.split == SPLITS.index(name)
        return LabelledContexts(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def save(self, path: Path) -> None:
        """Write an .npz."""
        write_arrays(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "LabelledContexts":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def unembedding_hook(model: nn.Module) -> dict[str, Hook]:
    """The hook point that is what the model's unembedding reads."""
    return {"final": Hook(module=readout.unembedding(model)[0], side="input")}


def final_states(
    model: nn.Module, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]]:
    """What the unembedding reads at each text token that another follows, and that other one.

    Arguments:
        model: of Hugging Face's causal language models.
        batches: token ids [batch, context], and which of them are text.
    """
    record = Recorder(model, unembedding_hook(model))
    device = model.get_input_embeddings().weight.device
    for tokens, is_text in batches:
        ids = torch.from_numpy(np.asarray(tokens, np.int64))
        # The token after a position is the one that the model is to name: it is text as well.
        wanted = np.zeros(is_text.shape, bool)
        wanted[:, 1:-1] = is_text[:, 1:-1] & is_text[:, 2:]
        rows = torch.from_numpy(np.flatnonzero(wanted))
        h = record(ids.to(device), rows)["final"]
        yield h.float().cpu(), ids.roll(-1, 1).flatten()[rows]


def prompt_states(model: nn.Module, tokens: Tokens, prompts: Sequence[str], batch_size: int) -> Float[Tensor, "n d"]:
    """What the unembedding reads at the end of each prompt.

    Raises:
        ValueError: a prompt that does not end with text.
    """
    record = Recorder(model, unembedding_hook(model))
    device = model.get_input_embeddings().weight.device
    encoded = tokens.with_start(prompts)
    if bare := [prompt for prompt, ids in zip(prompts, encoded, strict=True) if {*ids[-1:]} <= tokens.special]:
        raise ValueError(f"prompt {bare[0]!r} does not end with text; let geometry.concepts.templates end with a word")
    states = []
    for first in range(0, len(encoded), batch_size):
        batch = encoded[first : first + batch_size]
        length = max(map(len, batch))
        # A causal model does not see what stands behind a prompt.
        ids = torch.tensor([one + [one[-1]] * (length - len(one)) for one in batch])
        ends = torch.tensor([i * length + len(one) - 1 for i, one in enumerate(batch)])
        states.append(record(ids.to(device), ends)["final"].float().cpu())
    return torch.cat(states)


@torch.no_grad()
def label(
    h: Float[Tensor, "n d"],
    unembed: Callable[[Tensor], Tensor],
    concepts: Concepts,
    vocabulary_size: int,
    threshold: float = 0.5,
) -> Labels:
    """A context has the parent on whose words the model puts more than `threshold` of its mass, and that parent's
    child with more than half of it.

    Arguments:
        unembed: logits of h.
    """
    n_parents, n_children = len(concepts.parents), len(concepts.children)
    tokens = torch.tensor(concepts.tokens)
    to_parent = nn.functional.one_hot(torch.tensor(concepts.parent), n_parents).float()
    # Words of no child have a column of their own, which is dropped.
    to_child = nn.functional.one_hot(torch.tensor(concepts.child) + 1, n_children + 1).float()[:, 1:]
    parents, children, masses = [], [], []
    for rows in h.split(max(1, _LOGITS_BYTES // (4 * vocabulary_size))):
        logits = unembed(rows).float()
        p = (logits.index_select(1, tokens) - logits.logsumexp(1, keepdim=True)).exp()
        mass, parent = (p @ to_parent).max(1)
        inside = (p @ to_child) * (torch.tensor(concepts.parent_of)[None] == parent[:, None])
        best, child = inside.max(1)
        is_label = mass > threshold
        parents.append(torch.where(is_label, parent, NONE))
        children.append(torch.where(is_label & (best > mass / 2), child, NONE))
        masses.append(mass)
    return Labels(*(torch.cat(part).numpy() for part in (parents, children, masses)))


def choose(
    is_labelled: Bool[np.ndarray, " n"],
    sizes: tuple[int, int, int],
    concept_share: float,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Rows for the three splits, each with a share of labelled contexts, and the split of each row.

    Where there are too few labelled contexts, all are taken and divided in the same proportions; the rest are others.

    Raises:
        ValueError: fewer contexts than asked for.
    """
    total = sum(sizes)
    if len(is_labelled) < total:
        raise ValueError(f"{len(is_labelled)} contexts, but {total} are asked for; let the model read more tokens")
    labelled, others = (rng.permutation(np.flatnonzero(mask)) for mask in (is_labelled, ~is_labelled))
    n_labelled = max(min(len(labelled), round(concept_share * total)), total - len(others))
    rows, split = [], []
    taken = [0, 0]
    for number, size in enumerate(sizes):
        n = round(n_labelled * sum(sizes[: number + 1]) / total) - taken[0]
        for i, (pool, count) in enumerate(((labelled, n), (others, size - n))):
            rows.append(pool[taken[i] : taken[i] + count])
            taken[i] += count
        split += [number] * size
    return np.concatenate(rows), np.array(split)
