"""What the features of SAEs stand for, by kind of input: one module each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from saeflow.registry import Registry


@dataclass(frozen=True)
class Analyzed:
    """One SAE, and what is written of its features.

    Arguments:
        member: its number among the members of the network.
        variant, seed: which SAE of the member.
        sae: its cfg.json.
        features: table to write, a row per feature.
        beside: the other files of the analysis, in its own order.
    """

    member: int
    variant: str
    seed: int
    sae: Path
    features: Path
    beside: tuple[Path, ...]


class Analysis(Protocol):
    """Analyzes the SAEs of one hook point."""

    def __call__(
        self,
        network: Sequence[Path],
        given: Sequence[Path],
        stores: Mapping[str, Sequence[Path]],
        metrics: Sequence[Path],
        saes: Sequence[Analyzed],
        cfg: Mapping[str, Any],
    ) -> Iterator[str]:
        """
        Arguments:
            network, given: files of the network and of its input.
            stores: manifest.json of each member's store, by split.
            metrics: the table of `evaluate_saes`, if the analysis reads it.
            saes: in the order members x variants x seeds.
            cfg: of the job.
        Yields:
            a line for the log, as each SAE is done.
        """
        ...


ANALYSES: Registry[Analysis] = Registry("saeflow.features.analyses")
