"""Trade-off between a feature's activation and how unlike text a prompt is: the points that no other one beats."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Front:
    """Prompts of which none has both a higher score and a lower cross-entropy than another; ascending in both.

    Arguments:
        tokens: Shape [n, length].
        scores: Shape [n].
        losses: mean cross-entropy, nats per token.  Shape [n].
    """

    tokens: Int[Tensor, "n length"]
    scores: Float[Tensor, " n"]
    losses: Float[Tensor, " n"]

    @classmethod
    def of(cls, tokens: Int[Tensor, "n length"], scores: Float[Tensor, " n"], losses: Float[Tensor, " n"]) -> "Front":
        """The front of some prompts; of equal ones, the first."""
        order = sorted(range(len(scores)), key=lambda i: (float(losses[i]), -float(scores[i]), i))
        kept, highest = [], -float("inf")
        for i in order:
            if float(scores[i]) > highest:
                highest = float(scores[i])
                kept.append(i)
        chosen = torch.tensor(kept, dtype=torch.long)
        return cls(tokens[chosen], scores[chosen], losses[chosen])

    def joined(
        self, tokens: Int[Tensor, "n length"], scores: Float[Tensor, " n"], losses: Float[Tensor, " n"]
    ) -> "Front":
        """The front of these and more prompts."""
        old = (self.tokens, self.scores, self.losses)
        return Front.of(*(torch.cat(pair) for pair in zip(old, (tokens, scores, losses), strict=True)))

    def dominates(self, score: float, loss: float) -> bool:
        """Whether some point is no worse than another prompt in either."""
        return bool(((self.scores >= score) & (self.losses <= loss)).any())

    def best(self, most_loss: float = float("inf")) -> int | None:
        """Number of the point with the highest score among those no less like text than a bound; None if there is
        none."""
        inside: Bool[Tensor, " n"] = self.losses <= most_loss
        return int(inside.nonzero()[-1, 0]) if inside.any() else None
