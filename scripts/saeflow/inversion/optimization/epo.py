"""Evolutionary prompt optimisation: prompts that drive a feature, from fluent ones to those that drive it most.

Thompson et al. 2024, "Fluent dreaming for language models": a population in which every member has a weight of its own
for the cross-entropy. Here every prompt ever scored may enter the front, and candidates come from the gradient, from
the model's own predictions and from chance.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.inversion.optimization.candidates import SPARE, distinct, neighbours
from saeflow.inversion.optimization.front import Front
from saeflow.inversion.optimization.objective import BACKWARD, Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.reproduce import child_seed


@dataclass(frozen=True)
class EPOSettings:
    """How the population evolves.

    Arguments:
        evaluations: per feature, at most, as for `GCGSettings`.
        population: members; one has no weight on the cross-entropy, the others' are spread geometrically.
        least_weight, most_weight: their range, in shares of the feature's scale per nat.
        width: candidates per member and iteration.
        top_k: tokens per place that gradients and predictions propose, each.
        patience: iterations without a new point on the front after which a feature is done.
    """

    evaluations: int = 10_000
    population: int = 8
    least_weight: float = 0.01
    most_weight: float = 0.5
    width: int = 16
    top_k: int = 64
    patience: int = 12

    def weights(self) -> Float[Tensor, " population"]:
        """Of the cross-entropy, ascending from 0."""
        if self.population == 1:
            return torch.zeros(1)
        ends = torch.tensor([self.least_weight, self.most_weight], dtype=torch.float64).log()
        return torch.cat([torch.zeros(1), torch.linspace(*ends.tolist(), self.population - 1).exp()])


@dataclass(frozen=True)
class EPOResult:
    """Fronts of all features.

    Arguments:
        fronts: of each feature.
        spent: evaluations of each feature.  Shape [n_features].
        curve: feature, evaluations, best score so far; a row per feature and iteration.
    """

    fronts: list[Front]
    spent: Int[Tensor, " n_features"]
    curve: list[tuple[int, int, float]]


def evolve(
    objective: Objective,
    vocabulary: Vocabulary,
    starts: Int[Tensor, "n_features n_starts length"],
    windows: list[Int[Tensor, "_ length"]],
    scales: Float[Tensor, " n_features"],
    spec: EPOSettings,
    seed: int,
) -> EPOResult:
    """Evolve a population for each feature.

    Arguments:
        objective: of the features.
        vocabulary: of the candidates.
        starts: prompts that the first population is chosen from.
        windows: of the data set, for each feature, as `neighbours` takes them.
        scales: of each feature's activations (its highest on text, say), > 0.
        spec: see `EPOSettings`.
        seed: root of the draws.
    """
    n_features, n_starts, _ = starts.shape
    weights = spec.weights()[None] * scales[:, None]
    generators = [torch.Generator().manual_seed(child_seed(seed, "epo", i)) for i in range(n_features)]
    features = torch.arange(n_features).repeat_interleave(n_starts)
    flat = starts.flatten(0, 1)
    scores, losses = objective.scores_and_losses(flat, features)
    spent = torch.full((n_features,), n_starts)
    split = [features == i for i in range(n_features)]
    fronts = [Front.of(flat[own], scores[own], losses[own]) for own in split]
    population = torch.stack([_fittest(flat[own], scores[own], losses[own], weights[i]) for i, own in enumerate(split)])
    stale = torch.zeros(n_features, dtype=torch.long)
    curve = [(i, n_starts, float(front.scores[-1])) for i, front in enumerate(fronts)]
    step_cost = spec.population * (2 + BACKWARD + spec.width)
    while True:
        live = ((spent + step_cost <= spec.evaluations) & (stale < spec.patience)).nonzero()[:, 0]
        if not len(live):
            return EPOResult(fronts, spent, curve)
        members = population[live].flatten(0, 1)
        owners = live.repeat_interleave(spec.population)
        promising = _promising(objective, vocabulary, members, owners, weights[live].flatten(), spec.top_k)
        candidate, owner = _candidates(vocabulary, members, owners, promising, windows, spec, generators)
        scores, losses = objective.scores_and_losses(candidate, owner)
        spent[live] += spec.population * (2 + BACKWARD)
        spent += owner.bincount(minlength=n_features)
        for i in live.tolist():
            own = owner == i
            before = fronts[i]
            fronts[i] = before.joined(candidate[own], scores[own], losses[own])
            same = fronts[i].scores.shape == before.scores.shape and torch.equal(fronts[i].scores, before.scores)
            stale[i] = stale[i] + 1 if same else 0
            # The front holds the best prompt so far for any weight, so that it is all that has to be remembered.
            front = fronts[i]
            population[i] = _fittest(front.tokens, front.scores, front.losses, weights[i])
            curve.append((i, int(spent[i]), float(front.scores[-1])))


def _fittest(tokens: Tensor, scores: Tensor, losses: Tensor, weights: Tensor) -> Int[Tensor, "population length"]:
    """For each weight, the prompt with the highest score - weight x cross-entropy."""
    return tokens[(scores[None] - weights[:, None] * losses[None]).argmax(1)]


def _promising(
    objective: Objective, vocabulary: Vocabulary, members: Tensor, owners: Tensor, weights: Tensor, k: int
) -> Int[Tensor, "n length k2"]:
    """Tokens that each member's gradient favours, and tokens that the model expects at each place."""
    gradients = objective.gradients(members, owners, weights)
    by_gradient = vocabulary.promising(gradients, objective.embeddings, k)
    by_model = objective.expected(members, vocabulary.allowed, by_gradient.shape[-1])
    return torch.stack([by_gradient, by_model], dim=-1).flatten(2)  # in turn, the most promising of both first


def _candidates(
    vocabulary: Vocabulary,
    members: Tensor,
    owners: Tensor,
    promising: Tensor,
    windows: list[Tensor],
    spec: EPOSettings,
    generators: list[torch.Generator],
) -> tuple[Int[Tensor, "n length"], Int[Tensor, " n"]]:
    """Candidates that survive, and the feature of each."""
    n = SPARE * spec.width
    drawn = torch.cat(
        [
            neighbours(members[owners == i], promising[owners == i], windows[i], vocabulary.ids, n, generators[i])
            for i in owners.unique().tolist()
        ]
    )
    kept, member = distinct(drawn, members, vocabulary, spec.width)
    return kept, owners[member]
