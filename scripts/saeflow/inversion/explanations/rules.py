"""The offline explanation: a latent fires where the current or the previous token is one of a few."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from saeflow.inversion.explanations.readings import NONE, Readings

_PRIOR = 4.0  # tokens of the base rate that every token's share is pulled towards


@dataclass(frozen=True)
class Rule:
    """Chance that a latent fires, given the current and the previous token: 1 - (1 - p)(1 - q), 0 for other tokens.

    Arguments:
        current: chance by token of the current place.
        previous: chance by token of the place before.
        threshold: of a window's chance, above which it counts as one in which the latent fires.
    """

    current: dict[int, float]
    previous: dict[int, float]
    threshold: float = 0.5

    def chances(self, tokens: Int[np.ndarray, "*n"], previous: Int[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """For each token."""
        return 1 - (1 - _looked_up(self.current, tokens)) * (1 - _looked_up(self.previous, previous))


def fit(readings: Readings, feature: int, most_tokens: int = 40) -> Rule:
    """The tokens that tell most about where a latent fires.

    A token at a place (current or previous) is worth the firings that it explains times the log of how much likelier
    they are there; previous tokens are worth what they explain beyond the current ones chosen.

    Arguments:
        readings: of text that is not used to test the rule.
        feature: column of the activations.
        most_tokens: of both places together.
    """
    fires = readings.activations[:, feature] > 0
    base = fires.mean()
    if not fires.any():
        return Rule({}, {})
    worth_now, chance_now = _worth(readings.tokens, fires, base)
    chosen_now = sorted(worth_now, key=lambda token: (-worth_now[token], token))[:most_tokens]
    explained = _looked_up({token: chance_now[token] for token in chosen_now}, readings.tokens)
    # A firing counts before as far as the current token leaves it unexplained.
    worth_then, chance_then = _worth(readings.previous, fires, base, weight=1 - explained)
    worth_then.pop(NONE, None)
    both = [(worth, 0, token) for token, worth in worth_now.items()]
    both += [(worth, 1, token) for token, worth in worth_then.items()]
    chosen = sorted(both, key=lambda entry: (-entry[0], *entry[1:]))[:most_tokens]
    return Rule(
        {token: chance_now[token] for _, place, token in chosen if place == 0},
        {token: chance_then[token] for _, place, token in chosen if place == 1},
    )


def top_token(readings: Readings, feature: int) -> Rule:
    """The explanation to beat: the one token on which a latent's activations sum up highest."""
    values = readings.activations[:, feature]
    if not (values > 0).any():
        return Rule({}, {})
    return Rule({int(np.bincount(readings.tokens, values).argmax()): 1.0}, {})


def random_tokens(readings: Readings, n: int, seed: int) -> Rule:
    """The null: as many tokens, drawn from the text."""
    drawn = np.random.default_rng(seed).choice(readings.tokens, n)
    return Rule(dict.fromkeys(np.unique(drawn).tolist(), 0.5), {})


def _worth(
    tokens: Int[np.ndarray, " n"], fires: np.ndarray, base: float, weight: np.ndarray | None = None
) -> tuple[dict[int, float], dict[int, float]]:
    """By token: what it is worth, where that is positive, and the chance of firing, pulled towards the base rate."""
    names, where = np.unique(tokens, return_inverse=True)
    gain = np.ones(len(tokens)) if weight is None else weight
    total, hits = np.bincount(where, gain), np.bincount(where, gain * fires)
    chance = (hits + _PRIOR * base) / (total + _PRIOR)
    worth = hits * np.log(np.maximum(chance, 1e-12) / base)
    good = (worth > 0) & (chance > base)
    return dict(zip(names[good].tolist(), worth[good].tolist(), strict=True)), dict(
        zip(names.tolist(), chance.tolist(), strict=True)
    )


def _looked_up(table: dict[int, float], tokens: np.ndarray) -> np.ndarray:
    if not table:
        return np.zeros(tokens.shape)
    names = np.array(sorted(table))
    values = np.array([table[name] for name in names.tolist()])
    at = np.minimum(np.searchsorted(names, tokens), len(names) - 1)
    return np.where(names[at] == tokens, values[at], 0.0)
