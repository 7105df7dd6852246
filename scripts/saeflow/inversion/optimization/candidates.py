"""Neighbours of sequences of tokens: one or two tokens replaced, or one moved."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.inversion.optimization.vocabulary import Vocabulary

NONE = -1
"""In a window of the data set: no token stands here."""

_GUIDED, _DATA, _MOVED = 0.5, 0.25, 0.04  # shares of neighbours; the others put any token somewhere
_TWO = 0.25  # share of replacements that replace a second token as well
SPARE = 2
"""Neighbours drawn for each that is tried, since some do not survive."""


def neighbours(
    tokens: Int[Tensor, "rows length"],
    promising: Int[Tensor, "rows length k"],
    windows: Int[Tensor, "m length"],
    anything: Int[Tensor, " n_allowed"],
    n: int,
    generator: torch.Generator,
) -> Int[Tensor, "rows n length"]:
    """Half of them put a promising token somewhere, a quarter one that stands at the same place in a window of the data
    set, most others any token: gradients mislead where a model is far from linear.

    Arguments:
        tokens: the sequences.
        promising: tokens that a gradient, or a model's prediction, favours at each place, the most promising first.
        windows: of the data set, NONE in front of those that are shorter; without any, any token is put instead.
        anything: tokens that the rest draws from.
        n: how many, for each sequence.
        generator: of every draw.
    """
    rows, length = tokens.shape
    found, kind = tokens[:, None].repeat(1, n, 1), torch.rand(rows, n, generator=generator)
    for share in (1.0, _TWO):
        place = torch.randint(length, (rows, n), generator=generator)
        new = _any(anything, (rows, n), generator)
        new = torch.where(kind < _GUIDED, _ranked(promising, place, generator), new)
        if len(windows):
            theirs = windows[torch.randint(len(windows), (rows, n), generator=generator), place]
            new = torch.where((kind >= _GUIDED) & (kind < _GUIDED + _DATA) & (theirs != NONE), theirs, new)
        replaced = (torch.rand(rows, n, generator=generator) < share) & (kind < 1 - _MOVED)
        found.scatter_(2, place[..., None], torch.where(replaced, new, _at(found, place))[..., None])
    return torch.where((kind < 1 - _MOVED)[..., None], found, _moved(found, generator))


def distinct(
    drawn: Int[Tensor, "rows n length"], current: Int[Tensor, "rows length"], vocabulary: Vocabulary, most: int
) -> tuple[Int[Tensor, "m length"], Int[Tensor, " m"]]:
    """Those that survive, each once for its row and none that is what there is.

    Arguments:
        drawn: candidates for each row.
        current: what there is.
        vocabulary: tells which survive.
        most: for each row; the first ones.
    Returns:
        The candidates, and the row of each.
    """
    flat, survive = drawn.flatten(0, 1), vocabulary.survive(drawn.flatten(0, 1)).view(drawn.shape[:2]).tolist()
    kept, owners, n = [], [], drawn.shape[1]
    for row, (own, alive) in enumerate(zip(drawn.tolist(), survive, strict=True)):
        seen, count = {tuple(current[row].tolist())}, 0
        for i, (sequence, lives) in enumerate(zip(map(tuple, own), alive, strict=True)):
            if lives and sequence not in seen and count < most:
                seen.add(sequence)
                kept.append(row * n + i)
                owners.append(row)
                count += 1
    return flat[torch.tensor(kept, dtype=torch.long)], torch.tensor(owners, dtype=torch.long)


def _any(anything: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Int[Tensor, "rows n"]:
    return anything[torch.randint(len(anything), shape, generator=generator)]


def _ranked(promising: Tensor, place: Int[Tensor, "rows n"], generator: torch.Generator) -> Int[Tensor, "rows n"]:
    """Ranks are drawn log-uniformly: the first ten of a hundred as often as all the others."""
    rows, k = torch.arange(len(place))[:, None], promising.shape[-1]
    ranks = ((k + 1) ** torch.rand(place.shape, generator=generator, dtype=torch.float64) - 1).long()
    return promising[rows, place, ranks.clamp(max=k - 1)]


def _at(sequences: Int[Tensor, "rows n length"], place: Int[Tensor, "rows n"]) -> Int[Tensor, "rows n"]:
    return sequences.gather(2, place[..., None])[..., 0]


def _moved(sequences: Int[Tensor, "rows n length"], generator: torch.Generator) -> Int[Tensor, "rows n length"]:
    """One token is taken out and put in elsewhere."""
    length = sequences.shape[-1]
    old, new = (torch.randint(length, sequences.shape[:2], generator=generator)[..., None] for _ in range(2))
    keys: Float[Tensor, "rows n length"] = torch.arange(length).double().expand(sequences.shape).clone()
    keys.scatter_(2, old, torch.where(new > old, new + 0.5, new - 0.5).double())
    return sequences.gather(2, keys.argsort(-1))


def merged(current: Int[Tensor, " length"], better: Int[Tensor, "n length"], most: int) -> Int[Tensor, "m length"]:
    """Improvements put together: the best with the second, these with the third, and so on.

    Arguments:
        current: sequence that all of them improve.
        better: improvements, the best first; one that changes a place already changed is passed over.
        most: improvements that are put together.
    """
    together, changed, found, count = current.clone(), torch.zeros_like(current, dtype=torch.bool), [], 0
    for sequence in better:
        own: Bool[Tensor, " length"] = sequence != current
        if count == most:
            break
        if (own & changed).any():
            continue
        together, changed, count = torch.where(own, sequence, together), changed | own, count + 1
        if count > 1:
            found.append(together)
    return torch.stack(found) if found else current.new_empty(0, len(current))
