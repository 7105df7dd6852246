"""One sentence on a latent, made of evidence alone, and the evidence beside it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from saeflow.inversion.explanations.rules import Rule

_CHARACTERS = 60  # of a found text in a sentence: its end, where the latent fires
_LEAST = 0.02  # chance of a token that a sentence names
_STANDING = ("on", "after", "two tokens after", "three tokens after")


@dataclass(frozen=True)
class Evidence:
    """What is known of a latent.

    Arguments:
        feature: its number.
        density: share of tokens on which it fires.
        places: of the current token and of those before it, the nearest first: tokens and the chance that it fires
            where one stands there beside any unnamed ones, highest first.
        promoted: tokens whose logit its decoder row raises most.
        exemplars: text in which it fires most, the peak in double brackets.
        found: text that drives it most, by search; none if nothing was searched for.
        found_ratio: its activation by the highest on the data set.
        cluster: number of its cluster and what that promotes; none outside of clusters.
        concepts: concept tests that it passed, best first.
    """

    feature: int
    density: float
    places: list[list[tuple[str, float]]] = field(default_factory=list)
    promoted: list[str] = field(default_factory=list)
    exemplars: list[str] = field(default_factory=list)
    found: str | None = None
    found_ratio: float | None = None
    cluster: str | None = None
    concepts: list[str] = field(default_factory=list)

    def record(self) -> dict:
        """As JSON holds it."""
        return asdict(self)


def tokens_of(rule: Rule, strings: Callable[[Sequence[int]], list[str]]) -> list[list[tuple[str, float]]]:
    """The tokens for which each place of a rule speaks, with their chances, highest first."""
    places = []
    for place, weights in enumerate(rule.weights):
        chances = {token: chance for token, chance in rule.alone(place).items() if weights[token] > 0}
        order = sorted(chances, key=lambda token: (-chances[token], token))
        places.append(list(zip(strings(order) if order else [], (round(chances[t], 4) for t in order), strict=True)))
    return places


def marked(tokens: Sequence[str], peak: int) -> str:
    """A window as text, the token at its peak in double brackets."""
    return "".join(f"[[{token}]]" if i == peak else token for i, token in enumerate(tokens)).strip()


def sentence(evidence: Evidence, most: int = 5) -> str:
    """What the evidence says, in one sentence.

    Arguments:
        most: tokens named of the current and the previous place; of those before it two.
    """
    if evidence.density == 0:
        return f"Feature {evidence.feature} never fires on the text of this study; there is nothing to explain."
    named = zip(_STANDING, evidence.places, (most, most, 2, 2), strict=False)
    parts = [f"{where} {_quoted(tokens, n)}" for where, tokens, n in named if tokens and tokens[0][1] >= _LEAST]
    said = (
        f"fires {' and '.join(parts) or 'on no token in particular'}, on {100 * evidence.density:.2g} % of all tokens"
    )
    if evidence.promoted:
        said += f"; raises {', '.join(map(repr, evidence.promoted[:most]))}"
    if evidence.concepts:
        said += f"; passed the concept tests {', '.join(evidence.concepts)}"
    if evidence.cluster:
        said += f"; its cluster promotes {evidence.cluster}"
    if evidence.found and evidence.found_ratio is not None:
        end = evidence.found if len(evidence.found) <= _CHARACTERS else f"…{evidence.found[-_CHARACTERS:]}"
        said += f"; {end!r} drives it to {evidence.found_ratio:.2f} of its highest activation on text"
    return f"Feature {evidence.feature} {said}."


def _quoted(tokens: Sequence[tuple[str, float]], most: int) -> str:
    shown = [f"{token!r} ({100 * chance:.0f} %)" for token, chance in tokens[:most] if chance >= _LEAST]
    rest = len(tokens) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
