"""What a published SAE is called, here and at Neuronpedia."""

import re
from dataclasses import dataclass, field
from typing import Any

NEURONPEDIA_CREATOR = "clkht01d40000jv08hvalcvly"
"""Owner of the public rows in Neuronpedia's own exports; whoever imports them maps it to a user of theirs."""


@dataclass(frozen=True)
class Release:
    """Under which name and by whom SAEs are published."""

    name: str
    """Of lower-case letters, digits and dashes."""
    title: str
    creator: str
    url: str | None = None
    date: str = "2026-01-01"
    """Day that the rows carry as the date of their creation: one that is stated, or bytes would change."""
    creator_id: str = NEURONPEDIA_CREATOR

    def __post_init__(self) -> None:
        if slug(self.name) != self.name:
            raise ValueError(
                f"release {self.name!r}: expected lower-case letters, digits and dashes, as {slug(self.name)!r}"
            )
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.date):
            raise ValueError(f"release date {self.date!r}: expected a day such as 2026-01-01")

    @property
    def created_at(self) -> str:
        """The date as Neuronpedia's rows have it."""
        return f"{self.date}T00:00:00.000Z"


@dataclass(frozen=True)
class Identity:
    """One SAE of a release."""

    study: str
    model: str
    """Name of the model in the study."""
    hook_point: str
    variant: str
    release: Release
    model_revision: str | None = None
    seed: int | None = None
    model_id: str | None = None
    """Name of the model at Neuronpedia; its name in the study if not given."""
    layer: int | None = None
    """Number of the layer; found in the hook point if not given."""
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def np_model(self) -> str:
        """`modelId` of Neuronpedia."""
        return (self.model_id or self.model).lower()

    @property
    def np_layer(self) -> int:
        """Number of the layer.

        Raises:
            ValueError: the hook point has no number, and none is given.
        """
        if self.layer is not None:
            return self.layer
        numbers = [part for part in self.hook_point.split(".") if part.isdigit()]
        if not numbers:
            raise ValueError(f"hook point '{self.hook_point}' has no layer's number; give one")
        return int(numbers[0])

    @property
    def np_set(self) -> str:
        """Name of the source set: the release, the module within its layer, the SAE."""
        inside = [part for part in self.hook_point.split(".")[1:] if not part.isdigit() and part not in _STACKS]
        return slug("-".join([self.release.name, *(inside or ["res"]), self.variant]))

    @property
    def np_source(self) -> str:
        """`layer-set`, which Neuronpedia calls a source."""
        return f"{self.np_layer}-{self.np_set}"


_STACKS = ("layers", "h", "blocks", "layer")


def slug(text: str) -> str:
    """Lower-case letters, digits and single dashes: Neuronpedia splits names at `__` and at the first dash."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
