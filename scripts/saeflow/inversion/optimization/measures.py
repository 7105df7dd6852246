"""What is reported of found text: of the text that a user can paste, tokenised again, not of the ids found."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.inversion.optimization.objective import Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary


@dataclass(frozen=True)
class Measured:
    """A found text.

    Arguments:
        text: what a user would paste.
        token_ids: that the text is tokenised into.
        tokens: the same as text.
        profile: pre-activation of the feature at each of them.
        survived: whether these are the ids that were found.
        score: pre-activation of the feature on the text.
        cross_entropy: mean over the text's tokens, in nats; None where there is none to predict.
        ratio: score by the highest activation on the data set; None for a feature that never fires there.
    """

    text: str
    token_ids: list[int]
    tokens: list[str]
    profile: list[float]
    survived: bool
    score: float
    cross_entropy: float | None
    ratio: float | None


def measure(
    objective: Objective,
    vocabulary: Vocabulary,
    sequences: Sequence[Sequence[int]],
    features: Sequence[int],
    highest: Float[Tensor, " n_features"],
) -> list[Measured]:
    """Decode, tokenise again, score.

    Arguments:
        objective: of the features; a `position` counted from 0 must be inside every text.
        vocabulary: with the tokenizer.
        sequences: ids found.
        features: of each sequence, rows of the objective's readout.
        highest: activation of each feature on the data set; 0 for one that never fires.
    """
    texts = vocabulary.texts(sequences)
    again = vocabulary.tokenised(texts)
    scores, losses = score_lists(objective, again, features)
    shown = profiles(objective, again, features)
    rows = zip(sequences, texts, again, shown, features, scores.tolist(), losses.tolist(), strict=True)
    return [
        Measured(
            text,
            ids,
            vocabulary.tokens.strings(ids),
            profile,
            list(found) == ids,
            score,
            None if loss != loss else loss,
            score / float(highest[feature]) if highest[feature] > 0 else None,
        )
        for found, text, ids, profile, feature, score, loss in rows
    ]


def profiles(objective: Objective, sequences: Sequence[Sequence[int]], features: Sequence[int]) -> list[list[float]]:
    """Pre-activation of each sequence's feature at each of its tokens."""
    found: list[list[float]] = [[] for _ in sequences]
    for rows, tokens, own in _by_length(sequences, features):
        for i, values in zip(rows, objective.profiles(tokens, own).tolist(), strict=True):
            found[i] = values
    return found


def score_lists(
    objective: Objective, sequences: Sequence[Sequence[int]], features: Sequence[int]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Scores and cross-entropies of sequences of any lengths; -inf and NaN for an empty one."""
    scores, losses = torch.full((len(sequences),), -torch.inf), torch.full((len(sequences),), torch.nan)
    for rows, tokens, own in _by_length(sequences, features):
        scores[rows], losses[rows] = objective.scores_and_losses(tokens, own)
    return scores, losses


def _by_length(
    sequences: Sequence[Sequence[int]], features: Sequence[int]
) -> Iterator[tuple[list[int], Int[Tensor, "k length"], Int[Tensor, " k"]]]:
    """Numbers, tokens and features of the sequences of each length but 0."""
    by_length = defaultdict(list)
    for i, ids in enumerate(sequences):
        by_length[len(ids)].append(i)
    for length, rows in sorted(by_length.items()):
        if length:
            tokens = torch.tensor([list(sequences[i]) for i in rows])
            yield rows, tokens, torch.tensor([features[i] for i in rows])


def diversity(sequences: Int[Tensor, "n length"], scores: Float[Tensor, " n"], within: float = 0.9) -> float | None:
    """Mean share of places at which two solutions differ, over pairs of those that reach a share of the best score.

    Arguments:
        sequences, scores: a solution per restart.
        within: that share.
    Returns:
        None if fewer than two solutions reach it.
    """
    good = sequences[scores >= within * scores.max()]
    pairs = [(a != b).double().mean().item() for a, b in combinations(good, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def robustness(
    objective: Objective,
    tokens: Int[Tensor, "n length"],
    features: Int[Tensor, " n"],
    contexts: Int[Tensor, "m before"],
) -> Float[Tensor, " n"]:
    """Mean score behind other text by the score alone: far below 1 for a text that works at one place only.

    Arguments:
        tokens, features: found texts and their features; the position must be `last` or `any`.
        contexts: text that is put in front.
    """
    alone = objective.scores(tokens, features)
    m = len(contexts)
    fronts = contexts.repeat(len(tokens), 1)
    joined = torch.cat([fronts, tokens.repeat_interleave(m, 0)], dim=1)
    behind = objective.scores(joined, features.repeat_interleave(m)).view(len(tokens), m).mean(1)
    return torch.where(alone > 0, behind / alone.clamp(min=1e-12), torch.nan)
