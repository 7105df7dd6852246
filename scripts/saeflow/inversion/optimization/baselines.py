"""What a search has to beat: random text of the same budget, and the best windows of the data set."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.inversion.optimization.objective import Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.reproduce import child_seed

_AT_ONCE = 1024


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


def dataset_starts(
    windows: list[list[list[int]]],
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
            cropped = window[-length:]
            if len(cropped) < length:
                front = vocabulary.random(1, length - len(cropped), generator)[0].tolist()
                cropped = front + cropped
            sequence = torch.tensor(cropped)
            if bool(vocabulary.allowed[sequence].all()) and bool(vocabulary.survive(sequence[None])):
                found.append(sequence)
        drawn = vocabulary.random(restarts - len(found), length, generator)
        starts.append(torch.cat([torch.stack(found), drawn]) if found else drawn)
    return torch.stack(starts)
