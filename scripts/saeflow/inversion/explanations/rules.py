"""The offline explanation: the odds that a latent fires, by the current token and those before it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logit

from saeflow.inversion.explanations.readings import NONE, Readings

_PENALTY = 0.5  # of squared weights: they are expected within 1.4, a factor of four of the odds
_ROUNDS, _LARGEST_STEP = 12, 2.0
_SURE = 30.0  # log-odds


@dataclass(frozen=True)
class Rule:
    """P(fires | tokens) = sigma(base + sum over places k of weights[k][token at place k]).

    Place 0 is the current token, place k the one k before. Tokens that a place does not name weigh nothing there.

    Arguments:
        base: log-odds beside tokens that are not named.
        weights: by token, of each place.
        threshold: of a window's chance, above which it counts as one in which the latent fires.
    """

    base: float
    weights: tuple[dict[int, float], ...] = ()
    threshold: float = 0.5

    def chances(self, places: Int[np.ndarray, "*n places"]) -> Float[np.ndarray, "*n"]:
        """For each token."""
        odds = np.full(places.shape[:-1], self.base)
        for k, weights in enumerate(self.weights):
            odds += _looked_up(weights, places[..., k])
        return expit(odds)

    def alone(self, place: int) -> dict[int, float]:
        """Chance by token of one place, beside tokens that the others do not name."""
        weights = self.weights[place] if place < len(self.weights) else {}
        return {token: float(expit(self.base + weight)) for token, weight in weights.items()}


def never() -> Rule:
    """Of a latent that does not fire."""
    return Rule(-_SURE)


def fit(readings: Readings, feature: int, most_tokens: int = 100) -> Rule:
    """Logistic regression of whether a latent fires on the tokens: the log-likelihood less half of 0.5 |weights|^2.

    Each place names the tokens that tell most of where it fires, by the score test of a weight above 0:
    (hits - n p)^2 / (n p (1 - p)) for a token of n places, p being the share of all. By Newton's method, a place at a
    time: the tokens of one place exclude one another, so that their curvature is diagonal.

    Arguments:
        readings: of text that is not used to test the rule.
        feature: column of the activations.
        most_tokens: of each place.
    """
    fires = (readings.activations[:, feature] > 0).astype(float)
    if not fires.any():
        return never()
    names, columns = zip(*(_telling(tokens, fires, most_tokens) for tokens in readings.places.T), strict=True)
    # Column 0 stands for all tokens that are not named: its weight stays 0.
    weights = [np.zeros(len(named) + 1) for named in names]
    base = float(logit(np.clip(fires.mean(), 1e-6, 1 - 1e-6)))
    odds = np.full(len(fires), base)
    for _ in range(_ROUNDS):
        p = expit(odds)
        step = float(np.clip((fires - p).sum() / (p * (1 - p)).sum(), -_LARGEST_STEP, _LARGEST_STEP))
        base, odds = base + step, odds + step
        for column, weight in zip(columns, weights, strict=True):
            p = expit(odds)
            gradient = np.bincount(column, fires - p, len(weight)) - _PENALTY * weight
            curvature = np.bincount(column, p * (1 - p), len(weight)) + _PENALTY
            steps = np.clip(gradient / curvature, -_LARGEST_STEP, _LARGEST_STEP)
            steps[0] = 0
            weight += steps
            odds += steps[column]
    return Rule(
        base, tuple(dict(zip(n.tolist(), w[1:].tolist(), strict=True)) for n, w in zip(names, weights, strict=True))
    )


def _telling(
    tokens: Int[np.ndarray, " n"], fires: Float[np.ndarray, " n"], most: int
) -> tuple[Int[np.ndarray, " named"], Int[np.ndarray, " n"]]:
    """Tokens that a place names, and for each row the number of its own among them, from 1; 0 if it is not named."""
    share = fires.mean()
    found, where, n = np.unique(tokens, return_inverse=True, return_counts=True)
    hits = np.bincount(where, fires)
    # A token of nothing but firings in a text of nothing but firings says nothing.
    score = (hits - n * share) ** 2 / np.maximum(n * share * (1 - share), 1e-12)
    score[(hits <= n * share) | (found == NONE)] = 0
    chosen = np.argsort(-score, kind="stable")[:most]
    chosen = chosen[score[chosen] > 0]
    column = np.zeros(len(found), np.int64)
    column[chosen] = np.arange(1, len(chosen) + 1)
    return found[chosen], column[where]


def top_token(readings: Readings, feature: int) -> Rule:
    """The explanation to beat: the one token on which a latent's activations sum up highest."""
    values = readings.activations[:, feature]
    if not (values > 0).any():
        return never()
    return Rule(-_SURE, ({int(np.bincount(readings.tokens, values).argmax()): 2 * _SURE},))


def random_tokens(readings: Readings, n: int, seed: int) -> Rule:
    """The null: as many tokens, drawn from the text."""
    drawn = np.random.default_rng(seed).choice(readings.tokens, n)
    return Rule(-_SURE, (dict.fromkeys(np.unique(drawn).tolist(), _SURE),))


def _looked_up(table: dict[int, float], tokens: np.ndarray) -> np.ndarray:
    if not table:
        return np.zeros(tokens.shape)
    names = np.array(sorted(table))
    values = np.array([table[name] for name in names.tolist()])
    at = np.minimum(np.searchsorted(names, tokens), len(names) - 1)
    return np.where(names[at] == tokens, values[at], 0.0)
