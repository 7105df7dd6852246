"""Soft prompts: embeddings moved by gradient, held where embeddings of tokens are, and the tokens nearest to them."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.inversion.optimization.objective import Objective

Constraint = Literal["norm", "distribution", "simplex"]


@dataclass(frozen=True)
class SoftSettings:
    """How soft prompts are optimised.

    Arguments:
        steps: of ascent, at most.
        learning_rate: length of a step, in mean norms of an embedding.
        constraint: `norm`, no embedding longer than the longest token's; `distribution`, none farther from the mean
            embedding than the farthest token's, in standard deviations of the tokens' embeddings along their principal
            axes; `simplex`, each is a mean of token embeddings with weights from a softmax.
        patience: steps without a relative gain of `tolerance` after which a feature is done.
    """

    steps: int = 100
    learning_rate: float = 0.1
    constraint: Constraint = "norm"
    patience: int = 30
    tolerance: float = 1e-3


@dataclass(frozen=True)
class SoftResult:
    """Soft prompts of all features.

    Arguments:
        embedded: the best of each restart.  Shape [n_features, restarts, length, d].
        scores: of these.  Shape [n_features, restarts].
        curve: best score of each feature after each step.  Shape [steps, n_features].
    """

    embedded: Float[Tensor, "n_features restarts length d"]
    scores: Float[Tensor, "n_features restarts"]
    curve: Float[Tensor, "steps n_features"]


class _Space:
    """Where soft prompts may be: u -> embeddings, and back into the bounds."""

    def __init__(self, table: Float[Tensor, "n d"], constraint: Constraint) -> None:
        self.table, self.constraint = table, constraint
        self.mean = torch.zeros_like(table[0])
        self.axes = self.inverse = torch.eye(table.shape[1], device=table.device)
        if constraint == "distribution":
            self.mean = table.mean(0)
            covariance = torch.cov(table.T.double())
            values, vectors = torch.linalg.eigh(covariance)
            spread = values.clamp(min=1e-6 * values.max()).sqrt()
            self.axes = (spread[:, None] * vectors.T).float()
            self.inverse = (vectors / spread).float()
        self.radius = ((table - self.mean) @ self.inverse).norm(dim=-1).max()

    def enter(self, tokens: Int[Tensor, "n length"], table: Tensor, embeddings: Tensor) -> Tensor:
        """Coordinates of token embeddings; for the simplex, logits that favour them."""
        if self.constraint != "simplex":
            return (embeddings[tokens.to(embeddings.device)] - self.mean) @ self.inverse
        near = embeddings[tokens.to(embeddings.device)] @ table.T
        return 8 * near / near.abs().amax(-1, keepdim=True).clamp(min=1e-6)

    def embed(self, u: Tensor) -> Float[Tensor, "n length d"]:
        return u.softmax(-1) @ self.table if self.constraint == "simplex" else u @ self.axes + self.mean

    @torch.no_grad()
    def keep_inside(self, u: Tensor) -> None:
        if self.constraint != "simplex":
            u.mul_((self.radius / u.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1))

    @property
    def unit(self) -> float:
        """Length of a step that is one mean norm of an embedding; of the simplex, a change of each logit."""
        if self.constraint == "simplex":
            return 10.0
        return float(((self.table - self.mean) @ self.inverse).norm(dim=-1).mean())


class _Ascent:
    """Adam, with one second moment per vector: one per coordinate would turn every step towards a corner of the cube,
    while the bounds are round."""

    def __init__(self, u: Tensor, size: float, by_vector: bool) -> None:
        self._u, self._size, self._by_vector = u, size, by_vector
        self._first, self._second, self._n = torch.zeros_like(u), torch.zeros_like(u[..., :1] if by_vector else u), 0

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        square = gradient.square().sum(-1, keepdim=True) if self._by_vector else gradient.square()
        self._n += 1
        self._first.lerp_(gradient, 1 - 0.9)
        self._second.lerp_(square, 1 - 0.99)
        first, second = self._first / (1 - 0.9**self._n), self._second / (1 - 0.99**self._n)
        self._u.add_(self._size * first / second.sqrt().clamp(min=1e-12))


def optimise(
    objective: Objective,
    starts: Int[Tensor, "n_features restarts length"],
    allowed: Int[Tensor, " n"],
    spec: SoftSettings,
) -> SoftResult:
    """Raise the score of soft prompts, all features and restarts at once.

    Arguments:
        objective: of the features.
        starts: tokens whose embeddings the search begins at.
        allowed: tokens whose embeddings bound the search.
        spec: see `SoftSettings`.
    """
    n_features, restarts, length = starts.shape
    features = torch.arange(n_features).repeat_interleave(restarts)
    table = objective.embeddings[allowed.to(objective.device)]
    space = _Space(table, spec.constraint)
    u = space.enter(starts.flatten(0, 1), table, objective.embeddings).clone()
    space.keep_inside(u)
    u.requires_grad_()
    ascent = _Ascent(u, spec.learning_rate * space.unit, by_vector=spec.constraint != "simplex")
    best = space.embed(u).detach().clone()
    best_scores = torch.full((len(features),), -torch.inf)
    reference, stale = torch.full((n_features,), -torch.inf), torch.zeros(n_features, dtype=torch.long)
    curve = []
    for _ in range(spec.steps + 1):
        live = (stale < spec.patience)[features]
        if not live.any():
            break
        rows = live.nonzero()[:, 0]
        embedded = space.embed(u[rows.to(u.device)])
        scores = objective.soft_scores(embedded, features[rows])
        found = scores.detach().cpu()
        better = found > best_scores[rows]
        best[rows[better].to(best.device)] = embedded.detach()[better.to(best.device)].to(best)
        best_scores[rows] = torch.maximum(best_scores[rows], found)
        tops = best_scores.view(n_features, restarts).amax(1)
        gained = tops > reference + spec.tolerance * reference.abs().nan_to_num(posinf=0)
        reference, stale = torch.where(gained, tops, reference), torch.where(gained, 0, stale + 1)
        curve.append(tops)
        (gradient,) = torch.autograd.grad(scores.sum(), u)
        ascent.step(gradient)
        space.keep_inside(u)
    shape = (n_features, restarts)
    return SoftResult(best.view(*shape, length, -1).cpu(), best_scores.view(shape), torch.stack(curve))


@torch.no_grad()
def project(
    embedded: Float[Tensor, "n length d"], embeddings: Float[Tensor, "n_rows d"], allowed: Int[Tensor, " n_allowed"]
) -> Int[Tensor, "n length"]:
    """The allowed token whose embedding is nearest, by Euclidean distance, at each place."""
    table = embeddings[allowed.to(embeddings.device)]
    nearest = [torch.cdist(part.to(table), table[None]).argmin(-1).cpu() for part in embedded.split(64)]
    return allowed[torch.cat(nearest)]
