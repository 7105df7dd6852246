"""Greedy coordinate gradient: text that drives a feature most, one replaced token after another.

Zou et al. 2023, "Universal and transferable adversarial attacks on aligned language models", algorithm 1, with what
nanoGCG adds: only candidates whose text is tokenised back into them are tried.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.inversion.optimization.candidates import distinct, neighbours
from saeflow.inversion.optimization.objective import BACKWARD, Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.reproduce import child_seed


@dataclass(frozen=True)
class GCGSettings:
    """How the search spends its budget.

    Arguments:
        evaluations: per feature, at most, gradients among them as `Objective` counts them.
        width: candidates per feature and iteration, dealt among its restarts.
        top_k: tokens per place that a gradient proposes.
        patience: iterations without a better candidate after which a restart is disturbed.
        kick: tokens that are then replaced at random.
        stop_after: disturbances in a row that bring nothing new, after which a feature is done.
    """

    evaluations: int = 10_000
    width: int = 256
    top_k: int = 128
    patience: int = 4
    kick: int = 2
    stop_after: int = 6


@dataclass(frozen=True)
class SearchResult:
    """Texts found for all features.

    Arguments:
        tokens: the best of each restart.  Shape [n_features, restarts, length].
        scores: of these.  Shape [n_features, restarts].
        spent: evaluations of each feature.  Shape [n_features].
        curve: feature, evaluations, best score so far; a row per feature and iteration.
    """

    tokens: Int[Tensor, "n_features restarts length"]
    scores: Float[Tensor, "n_features restarts"]
    spent: Int[Tensor, " n_features"]
    curve: list[tuple[int, int, float]]

    @property
    def best(self) -> Int[Tensor, "n_features length"]:
        """The best of each feature."""
        return self.tokens[torch.arange(len(self.tokens)), self.scores.argmax(1)]


def search(
    objective: Objective,
    vocabulary: Vocabulary,
    starts: Int[Tensor, "n_features restarts length"],
    spec: GCGSettings,
    seed: int,
) -> SearchResult:
    """Search for all features and restarts at once.

    Of the restarts of a feature the worse half is given up at a third of the budget, and again at two thirds. What a
    feature finds depends on its own draws alone, but for rounding in batches of other sizes.

    Arguments:
        objective: of the features.
        vocabulary: of the candidates.
        starts: sequences to begin with; they should survive being tokenised again.
        spec: see `GCGSettings`.
        seed: root of the draws.
    """
    state = _State(objective, starts, spec, seed)
    while True:
        rows = state.rows()
        if not len(rows):
            break
        state.step(rows, vocabulary)
    shape = starts.shape[:2]
    return SearchResult(state.best.view(*shape, -1), state.best_scores.view(shape), state.spent, state.curve)


class _State:
    """Restarts of all features, flat."""

    def __init__(self, objective: Objective, starts: Tensor, spec: GCGSettings, seed: int) -> None:
        n_features, restarts, _ = starts.shape
        self.objective, self.spec = objective, spec
        self.features = torch.arange(n_features).repeat_interleave(restarts)
        self.tokens = starts.flatten(0, 1).clone()
        self.generators = [torch.Generator().manual_seed(child_seed(seed, "gcg", i)) for i in range(n_features)]
        self.scores = objective.scores(self.tokens, self.features)
        self.best, self.best_scores = self.tokens.clone(), self.scores.clone()
        self.spent = torch.full((n_features,), restarts)
        self.alive = torch.ones(len(self.tokens), dtype=torch.bool)
        self.stale = torch.zeros(len(self.tokens), dtype=torch.long)
        self.kicks = torch.zeros(n_features, dtype=torch.long)
        self.curve: list[tuple[int, int, float]] = []
        self._halvings = [0] * n_features
        self._note(range(n_features))

    def rows(self) -> Int[Tensor, " n"]:
        """Restarts that go on."""
        for feature in range(len(self.spent)):
            own = (self.features == feature).nonzero()[:, 0]
            alive = own[self.alive[own]]
            # The last iteration is dropped whole, not cut short.
            next_cost = len(alive) * (1 + BACKWARD) + self.spec.width
            if self.spent[feature] + next_cost > self.spec.evaluations or self.kicks[feature] >= self.spec.stop_after:
                self.alive[own] = False
            elif self.spent[feature] * 3 >= (self._halvings[feature] + 1) * self.spec.evaluations and len(alive) > 1:
                self._halvings[feature] += 1
                order = alive[self.best_scores[alive].argsort(descending=True, stable=True)]
                self.alive[order[(len(order) + 1) // 2 :]] = False
        return self.alive.nonzero()[:, 0]

    def step(self, rows: Int[Tensor, " n"], vocabulary: Vocabulary) -> None:
        """One iteration of these restarts."""
        spec, features = self.spec, self.features[rows]
        gradients = self.objective.gradients(self.tokens[rows], features)
        promising = vocabulary.promising(gradients, self.objective.embeddings, spec.top_k)
        counts = features.bincount(minlength=len(self.spent))
        owners, candidates = [], []
        for i, row in enumerate(rows.tolist()):
            feature = int(self.features[row])
            n = spec.width // int(counts[feature])
            # More than are tried, since some do not survive.
            drawn = neighbours(self.tokens[row], promising[i], vocabulary.ids, 2 * n, self.generators[feature])
            drawn = drawn[torch.randperm(len(drawn), generator=self.generators[feature])]
            kept = distinct(drawn, self.tokens[row])
            kept = kept[vocabulary.survive(kept)][:n]
            owners.append(torch.full((len(kept),), row))
            candidates.append(kept)
        owner, candidate = torch.cat(owners), torch.cat(candidates)
        scores = self.objective.scores(candidate, self.features[owner])
        self.spent += counts * (1 + BACKWARD) + self.features[owner].bincount(minlength=len(self.spent))
        self._take(rows, owner, candidate, scores, vocabulary)
        self._note(features.unique().tolist())

    def _take(self, rows: Tensor, owner: Tensor, candidate: Tensor, scores: Tensor, vocabulary: Vocabulary) -> None:
        """The best candidate of each restart that is better than what it has; a restart that is stuck is disturbed."""
        for row in rows.tolist():
            own = (owner == row).nonzero()[:, 0]
            feature = int(self.features[row])
            top = own[scores[own].argmax()] if len(own) else None
            if top is not None and scores[top] > self.scores[row]:
                self.tokens[row], self.scores[row], self.stale[row] = candidate[top], scores[top], 0
                if scores[top] > self.best_scores[row]:
                    self.best[row], self.best_scores[row] = candidate[top], scores[top]
                    self.kicks[feature] = 0
                continue
            self.stale[row] += 1
            if self.stale[row] >= self.spec.patience:
                self.kicks[feature] += 1
                self.tokens[row] = self._kicked(row, vocabulary)
                self.scores[row], self.stale[row] = -torch.inf, 0

    def _kicked(self, row: int, vocabulary: Vocabulary) -> Int[Tensor, " length"]:
        """The best of a restart with some tokens replaced; unchanged if no text tried survives."""
        generator, length = self.generators[int(self.features[row])], self.best.shape[1]
        tries = self.best[row].repeat(16, 1)
        for _ in range(self.spec.kick):
            place = torch.randint(length, (16,), generator=generator)
            new = vocabulary.ids[torch.randint(len(vocabulary.ids), (16,), generator=generator)]
            tries[torch.arange(16), place] = new
        alive = vocabulary.survive(tries).nonzero()[:, 0]
        return tries[alive[0]] if len(alive) else self.best[row]

    def _note(self, features: range | list[int]) -> None:
        tops = self.best_scores.view(len(self.spent), -1).amax(1)
        self.curve += [(feature, int(self.spent[feature]), float(tops[feature])) for feature in features]
