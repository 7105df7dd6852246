"""Neighbours of a sequence of tokens: one or two tokens replaced, or all from one place on moved by one."""

import torch
from jaxtyping import Int
from torch import Tensor

_TWO = 0.25  # share of replacements that replace a second token as well
_MOVES = 0.15  # share of the neighbours without a gradient that move tokens


def neighbours(
    tokens: Int[Tensor, " length"],
    promising: Int[Tensor, "length k"],
    anything: Int[Tensor, " n_allowed"],
    n: int,
    generator: torch.Generator,
) -> Int[Tensor, "n length"]:
    """Half of them put a promising token somewhere, half any token: gradients mislead where a model is far from linear.

    Arguments:
        tokens: the sequence.
        promising: tokens that a gradient, or a model's prediction, favours at each place, the most promising first.
        anything: tokens that the other half draws from.
        n: how many.
        generator: of every draw.
    """
    half = n - n // 2
    guided, k = tokens.repeat(half, 1), promising.shape[1]
    # Ranks are drawn log-uniformly: the first ten of a hundred as often as all the others.
    ranks = ((k + 1) ** torch.rand(half, len(tokens), 2, generator=generator, dtype=torch.float64) - 1).long()
    _replace(guided, promising[torch.arange(len(tokens))[:, None], ranks.clamp(max=k - 1)], generator)
    free = tokens.repeat(n - half, 1)
    moved = int(_MOVES * len(free))
    _move(free[:moved], generator)
    choice = torch.randint(len(anything), (*free.shape, 2), generator=generator)
    _replace(free, anything[choice], generator)
    return torch.cat([guided, free])


def distinct(candidates: Int[Tensor, "n length"], current: Int[Tensor, " length"]) -> Int[Tensor, "m length"]:
    """Each once, in the order of their first appearance, and none that is what there is."""
    seen, kept = {tuple(current.tolist())}, []
    for i, sequence in enumerate(map(tuple, candidates.tolist())):
        if sequence not in seen:
            seen.add(sequence)
            kept.append(i)
    return candidates[torch.tensor(kept, dtype=torch.long)]


def _replace(
    sequences: Int[Tensor, "n length"], choices: Int[Tensor, "n length k"], generator: torch.Generator
) -> None:
    """In place: one token of each sequence, sometimes two, by one of the choices for its place."""
    n, length, k = choices.shape
    rows = torch.arange(n)
    for share in (1.0, _TWO):
        chosen = torch.rand(n, generator=generator) < share
        place = torch.randint(length, (n,), generator=generator)
        rank = torch.randint(k, (n,), generator=generator)
        new = torch.where(chosen, choices[rows, place, rank], sequences[rows, place])
        sequences[rows, place] = new


def _move(sequences: Int[Tensor, "n length"], generator: torch.Generator) -> None:
    """In place: one token is taken out and put in elsewhere."""
    n, length = sequences.shape
    old, new = (torch.randint(length, (n,), generator=generator) for _ in range(2))
    for row, a, b in zip(sequences, old.tolist(), new.tolist(), strict=True):
        order = [*range(a), *range(a + 1, length)]
        order.insert(b, a)
        row.copy_(row[torch.tensor(order)])
