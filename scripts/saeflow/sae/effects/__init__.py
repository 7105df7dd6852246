"""What SAEs do to what a network answers, by kind of network: one module each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saeflow.activations import ActivationStore
from saeflow.registry import Registry
from saeflow.sae.architectures import SparseAutoencoder

Saes = Mapping[tuple[str, int], SparseAutoencoder]
"""SAEs of one member by variant and seed."""
Measure = Callable[
    [Sequence[Path], Sequence[Path], Sequence[ActivationStore], Sequence[Saes], Mapping[str, Any]],
    Iterator[tuple[int, tuple[str, int], dict[str, Any]]],
]
"""Takes the files of a network and of its input, the held-out store and the SAEs of each member, and the job's `cfg`;
gives, for each SAE, the number of its member, its key, and its metrics: columns of a table."""

EFFECTS: Registry[Measure] = Registry("saeflow.sae.effects")
