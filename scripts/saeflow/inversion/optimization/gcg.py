"""Greedy coordinate gradient: text that drives a feature most, one replaced token after another.

Zou et al. 2023, "Universal and transferable adversarial attacks on aligned language models", algorithm 1, with what
nanoGCG adds: only candidates whose text is tokenised back into them are tried. Beyond both, a restart tries few
candidates and goes on at once, takes several improvements in one step, and takes tokens from the data set as well.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.inversion.optimization.candidates import SPARE, distinct, merged, neighbours
from saeflow.inversion.optimization.objective import BACKWARD, Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.reproduce import child_seed


@dataclass(frozen=True)
class GCGSettings:
    """How the search spends its budget.

    Arguments:
        evaluations: per feature, at most, gradients among them as `Objective` counts them.
        width: candidates per restart and iteration.
        merged: improvements of one iteration that are put together, at most.
        top_k: tokens per place that a gradient proposes.
        patience: iterations without a better candidate after which a restart is disturbed.
        kick: tokens that are then replaced at random.
        stop_after: disturbances in a row that bring nothing new, after which a feature is done.
    """

    evaluations: int = 10_000
    width: int = 16
    merged: int = 3
    top_k: int = 128
    patience: int = 8
    kick: int = 2
    stop_after: int = 12


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
    windows: list[Int[Tensor, "_ length"]],
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
        windows: of the data set, for each feature, as `neighbours` takes them.
        spec: see `GCGSettings`.
        seed: root of the draws.
    """
    state = _State(objective, vocabulary, starts, windows, spec, seed)
    while len(rows := state.rows()):
        state.step(rows)
    shape = starts.shape[:2]
    return SearchResult(state.best.view(*shape, -1), state.best_scores.view(shape), state.spent, state.curve)


class _State:
    """Restarts of all features, flat."""

    def __init__(
        self,
        objective: Objective,
        vocabulary: Vocabulary,
        starts: Tensor,
        windows: list[Tensor],
        spec: GCGSettings,
        seed: int,
    ) -> None:
        n_features, self.restarts, length = starts.shape
        self.objective, self.vocabulary, self.windows, self.spec = objective, vocabulary, windows, spec
        self.features = torch.arange(n_features).repeat_interleave(self.restarts)
        self.tokens = starts.flatten(0, 1).clone()
        self.generators = [torch.Generator().manual_seed(child_seed(seed, "gcg", i)) for i in range(n_features)]
        self.scores = objective.scores(self.tokens, self.features)
        self.best, self.best_scores = self.tokens.clone(), self.scores.clone()
        self.promising = torch.zeros(len(self.tokens), length, min(spec.top_k, len(vocabulary.ids)), dtype=torch.long)
        self.outdated = torch.ones(len(self.tokens), dtype=torch.bool)  # whose tokens changed since its gradient
        self.alive = torch.ones(len(self.tokens), dtype=torch.bool)
        self.stale = torch.zeros(len(self.tokens), dtype=torch.long)
        self.spent = torch.full((n_features,), self.restarts)
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
            next_cost = len(alive) * (1 + BACKWARD + self.spec.width + max(0, self.spec.merged - 1))
            if self.spent[feature] + next_cost > self.spec.evaluations or self.kicks[feature] >= self.spec.stop_after:
                self.alive[own] = False
            elif self.spent[feature] * 3 >= (self._halvings[feature] + 1) * self.spec.evaluations and len(alive) > 1:
                self._halvings[feature] += 1
                order = alive[self.best_scores[alive].argsort(descending=True, stable=True)]
                self.alive[order[(len(order) + 1) // 2 :]] = False
        return self.alive.nonzero()[:, 0]

    def step(self, rows: Int[Tensor, " n"]) -> None:
        """One iteration of these restarts."""
        self._update_gradients(rows[self.outdated[rows]])
        owner, candidate = self._candidates(rows)
        scores = self._scored(owner, candidate)
        more_owner, more = self._merged(rows, owner, candidate, scores)
        more_scores = self._scored(more_owner, more)
        self._take(rows, torch.cat([owner, more_owner]), torch.cat([candidate, more]), torch.cat([scores, more_scores]))
        self._note(self.features[rows].unique().tolist())

    def _update_gradients(self, rows: Tensor) -> None:
        gradients = self.objective.gradients(self.tokens[rows], self.features[rows])
        self.promising[rows] = self.vocabulary.promising(gradients, self.objective.embeddings, self.spec.top_k)
        self.outdated[rows] = False
        self.spent += (1 + BACKWARD) * self.features[rows].bincount(minlength=len(self.spent))

    def _candidates(self, rows: Tensor) -> tuple[Int[Tensor, " n"], Int[Tensor, "n length"]]:
        """New candidates, and the row of each."""
        drawn = torch.cat(
            [
                neighbours(
                    self.tokens[own],
                    self.promising[own],
                    self.windows[feature],
                    self.vocabulary.ids,
                    SPARE * self.spec.width,
                    self.generators[feature],
                )
                for feature in self.features[rows].unique().tolist()
                if len(own := rows[self.features[rows] == feature])
            ]
        )
        kept, owner = distinct(drawn, self.tokens[rows], self.vocabulary, self.spec.width)
        return rows[owner], kept

    def _merged(
        self, rows: Tensor, owner: Tensor, candidate: Tensor, scores: Tensor
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, "n length"]]:
        """What several improvements of a row make together, and the row of each."""
        owners, found = [rows[:0]], [self.tokens[:0]]
        better = scores > self.scores[owner]
        for row in rows.tolist():
            own = ((owner == row) & better).nonzero()[:, 0]
            own = own[scores[own].argsort(descending=True, stable=True)]
            together = merged(self.tokens[row], candidate[own], self.spec.merged)
            owners.append(torch.full((len(together),), row))
            found.append(together)
        owners, found = torch.cat(owners), torch.cat(found)
        alive = self.vocabulary.survive(found)
        return owners[alive], found[alive]

    def _scored(self, owner: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
        self.spent += self.features[owner].bincount(minlength=len(self.spent))
        return self.objective.scores(candidate, self.features[owner])

    def _take(self, rows: Tensor, owner: Tensor, candidate: Tensor, scores: Tensor) -> None:
        """The best candidate of each restart that is better than what it has; a restart that is stuck is disturbed."""
        for row in rows.tolist():
            own = (owner == row).nonzero()[:, 0]
            feature = int(self.features[row])
            top = own[scores[own].argmax()] if len(own) else None
            if top is not None and scores[top] > self.scores[row]:
                self.tokens[row], self.scores[row], self.stale[row] = candidate[top], scores[top], 0
                self.outdated[row] = True
                if scores[top] > self.best_scores[row]:
                    self.best[row], self.best_scores[row] = candidate[top], scores[top]
                    self.kicks[feature] = 0
                continue
            self.stale[row] += 1
            if self.stale[row] >= self.spec.patience:
                self.kicks[feature] += 1
                self.tokens[row] = self._kicked(row)
                self.scores[row], self.stale[row], self.outdated[row] = -torch.inf, 0, True

    def _kicked(self, row: int) -> Int[Tensor, " length"]:
        """The best of a restart with some tokens replaced; unchanged if no text tried survives."""
        generator, length = self.generators[int(self.features[row])], self.best.shape[1]
        tries, ids = self.best[row].repeat(16, 1), self.vocabulary.ids
        for _ in range(self.spec.kick):
            place = torch.randint(length, (16,), generator=generator)
            tries[torch.arange(16), place] = ids[torch.randint(len(ids), (16,), generator=generator)]
        alive = self.vocabulary.survive(tries).nonzero()[:, 0]
        return tries[alive[0]] if len(alive) else self.best[row]

    def _note(self, features: range | list[int]) -> None:
        tops = self.best_scores.view(len(self.spent), -1).amax(1)
        self.curve += [(feature, int(self.spent[feature]), float(tops[feature])) for feature in features]
