"""What a search has to beat: random text of the same budget, and the best windows of the data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.config.inversion import WINDOWS_SCORED
from saeflow.inversion.optimization.candidates import NONE
from saeflow.inversion.optimization.measures import score_lists
from saeflow.inversion.optimization.objective import Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.reproduce import child_seed

_AT_ONCE = 1024
_ENOUGH = 0.9


@dataclass(frozen=True)
class RandomResult:
    """The best random text of each feature.

    Arguments:
        tokens: Shape [n_features, length].
        scores: Shape [n_features].
        spent: prompts that each feature was tried on.
    """

    tokens: Int[Tensor, "n_features length"]
    scores: Float[Tensor, " n_features"]
    spent: int


def random_search(
    objective: Objective, vocabulary: Vocabulary, length: int, evaluations: int, seed: int
) -> RandomResult:
    """Try random texts; each is scored for all features at once, so that every one of these gets the whole budget.

    Arguments:
        objective: of the features.
        vocabulary: tokens to draw from.
        length: tokens of a text.
        evaluations: texts.
        seed: root of the draws.
    """
    generator = torch.Generator().manual_seed(child_seed(seed, "random search"))
    best = torch.full((objective.n_features,), -torch.inf)
    tokens = torch.zeros(objective.n_features, length, dtype=torch.long)
    for first in range(0, evaluations, _AT_ONCE):
        drawn = vocabulary.random(min(_AT_ONCE, evaluations - first), length, generator)
        scores, at = objective.all_scores(drawn).max(0)
        better = scores > best
        best, tokens = torch.where(better, scores, best), torch.where(better[:, None], drawn[at], tokens)
    return RandomResult(tokens, best, evaluations)


@dataclass(frozen=True)
class Crops:
    """The best text of the data set for each feature.

    Arguments:
        best: its tokens; none if no window of the feature survives.
        lengths: that a text for the feature should have.
        spent: evaluations of each feature.
    """

    best: list[list[int]]
    lengths: list[int]
    spent: Int[Tensor, " n_features"]


def best_crops(
    objective: Objective, vocabulary: Vocabulary, windows: Sequence[Sequence[Sequence[int]]], longest: int, seed: int
) -> Crops:
    """Score the last tokens of the best windows: as many as a text may have, half as many, a quarter and so on to one.

    Some features fire at the start of a text alone, and no longer text drives them. So a feature gets the greatest of
    these lengths at which a text reaches nine tenths of what the best one does. Windows too short for a length stand
    there behind random text: that a window is short does not say that the feature wants it so. Where the position is a
    place counted from 0, all texts have the same length.

    Arguments:
        objective: of the features.
        vocabulary: tells which crops survive being tokenised again.
        windows: of each feature, tokens up to and with a peak, the highest peak first.
        longest: tokens of a text, at most.
        seed: root of the draws.
    """
    lengths = [longest]
    while isinstance(objective.position, str) and lengths[-1] > 1:
        lengths.append(lengths[-1] // 2)
    best, chosen, spent = [], [], []
    for i, own in enumerate(windows):
        generator = torch.Generator().manual_seed(child_seed(seed, "lengths", i))
        pairs = [(window, n) for n in lengths for window in own[:WINDOWS_SCORED]]
        crops = _typed(vocabulary, (window[-n:] for window, n in pairs if len(window) >= n))
        behind = (_lengthened(window, n, vocabulary, generator) for window, n in pairs if len(window) < n)
        texts = crops + _typed(vocabulary, behind)
        scores, _ = score_lists(objective, texts, [i] * len(texts))
        top = float(scores.max()) if texts else 0.0
        enough = [len(text) for score, text in zip(scores.tolist(), texts, strict=True) if score >= _ENOUGH * top]
        best.append(crops[int(scores[: len(crops)].argmax())] if crops else [])
        chosen.append(max(enough, default=longest))
        spent.append(len(texts))
    return Crops(best, chosen, torch.tensor(spent))


def _typed(vocabulary: Vocabulary, texts: Iterable[Sequence[int]]) -> list[list[int]]:
    """Those that survive being tokenised again, each once."""
    return [list(text) for text in dict.fromkeys(map(tuple, texts)) if vocabulary.can_type(text)]


def dataset_starts(
    windows: Sequence[Sequence[Sequence[int]]],
    vocabulary: Vocabulary,
    restarts: int,
    length: int,
    seed: int,
) -> Int[Tensor, "n_features restarts length"]:
    """Starts of a search: half of the restarts from the best windows of the data set, the others from random text.

    Arguments:
        windows: of each feature, tokens up to and with a peak, the highest peak first.
        vocabulary: of the random text, and to tell which windows survive being tokenised again.
        restarts: per feature.
        length: tokens of a start; of a window its last ones, behind random text if it is shorter.
        seed: root of the draws.
    """
    starts = []
    for i, own in enumerate(windows):
        generator = torch.Generator().manual_seed(child_seed(seed, "starts", i))
        found = []
        for window in own:
            if len(found) == (restarts + 1) // 2:
                break
            text = _lengthened(window, length, vocabulary, generator)
            if vocabulary.can_type(text):
                found.append(torch.tensor(text))
        drawn = vocabulary.random(restarts - len(found), length, generator)
        starts.append(torch.cat([torch.stack(found), drawn]) if found else drawn)
    return torch.stack(starts)


def _lengthened(window: Sequence[int], length: int, vocabulary: Vocabulary, generator: torch.Generator) -> list[int]:
    """The last tokens of a window, behind random text if it is shorter."""
    own = list(window[-length:])
    front = vocabulary.random(1, length - len(own), generator)[0].tolist() if len(own) < length else []
    return front + own


def aligned(windows: Sequence[Sequence[int]], length: int) -> Int[Tensor, "m length"]:
    """The last tokens of each window, NONE in front of those that are shorter."""
    rows = [[NONE] * (length - len(own)) + own for own in (list(window[-length:]) for window in windows)]
    return torch.tensor(rows, dtype=torch.long).view(-1, length)
