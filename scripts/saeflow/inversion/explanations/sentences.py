"""One sentence on a latent, made of evidence alone, and the evidence beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from saeflow.inversion.explanations.rules import Rule

_CHARACTERS = 60  # of a found text in a sentence: its end, where the latent fires


@dataclass(frozen=True)
class Evidence:
    """What is known of a latent.

    Arguments:
        feature: its number.
        density: share of tokens on which it fires.
        current, previous: tokens and the chance that it fires where one stands beside any unnamed one, highest first.
        promoted: tokens whose logit its decoder row raises most.
        exemplars: text in which it fires most, the peak in double brackets.
        found: text that drives it most, by search; none if nothing was searched for.
        found_ratio: its activation by the highest on the data set.
        cluster: number of its cluster and what that promotes; none outside of clusters.
        concepts: concept tests that it passed, best first.
    """

    feature: int
    density: float
    current: list[tuple[str, float]] = field(default_factory=list)
    previous: list[tuple[str, float]] = field(default_factory=list)
    promoted: list[str] = field(default_factory=list)
    exemplars: list[str] = field(default_factory=list)
    found: str | None = None
    found_ratio: float | None = None
    cluster: str | None = None
    concepts: list[str] = field(default_factory=list)

    def record(self) -> dict:
        """As JSON holds it."""
        return asdict(self)


def tokens_of(
    rule: Rule, strings: Callable[[Sequence[int]], list[str]]
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The tokens for which a rule's two places speak, with their chances, highest first."""

    def shown(weights: Mapping[int, float]) -> list[tuple[str, float]]:
        chances = rule.alone({token: weight for token, weight in weights.items() if weight > 0})
        order = sorted(chances, key=lambda token: (-chances[token], token))
        return list(zip(strings(order) if order else [], (round(chances[t], 4) for t in order), strict=True))

    return shown(rule.current), shown(rule.previous)


def marked(tokens: Sequence[str], peak: int) -> str:
    """A window as text, the token at its peak in double brackets."""
    return "".join(f"[[{token}]]" if i == peak else token for i, token in enumerate(tokens)).strip()


def sentence(evidence: Evidence, most: int = 5) -> str:
    """What the evidence says, in one sentence.

    Arguments:
        most: tokens named per place.
    """
    if evidence.density == 0:
        return f"Feature {evidence.feature} never fires on the text of this study; there is nothing to explain."
    parts = []
    if evidence.current:
        parts.append(f"fires on {_quoted(evidence.current, most)}")
    if evidence.previous:
        parts.append(f"{'' if parts else 'fires '}after {_quoted(evidence.previous, most)}")
    if not parts:
        parts.append("fires on no token in particular")
    said = " and ".join(parts) + f", on {100 * evidence.density:.2g} % of all tokens"
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
    shown = ", ".join(f"{token!r} ({100 * chance:.0f} %)" for token, chance in tokens[:most])
    rest = len(tokens) - most
    return shown + (f" and {rest} more" if rest > 0 else "")
