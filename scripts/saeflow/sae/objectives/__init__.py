"""What each variant optimises: one class per variant, with its loss and exact gradients."""

from saeflow.config import saes
from saeflow.config.saes import SparseAutoencoder
from saeflow.sae.objectives.base import Objective, Splice
from saeflow.sae.objectives.gated import Gated
from saeflow.sae.objectives.jumprelu import JumpReLU
from saeflow.sae.objectives.relu import ReLU
from saeflow.sae.objectives.topk import BatchTopK, MatryoshkaBatchTopK, TopK

_OBJECTIVES: dict[type[SparseAutoencoder], type[Objective]] = {
    saes.ReLU: ReLU,
    saes.Gated: Gated,
    saes.JumpReLU: JumpReLU,
    saes.TopK: TopK,
    saes.BatchTopK: BatchTopK,
    saes.MatryoshkaBatchTopK: MatryoshkaBatchTopK,
}


def objective_of(spec: SparseAutoencoder) -> type[Objective]:
    """The class that trains a variant."""
    return _OBJECTIVES[type(spec)]


__all__ = [
    "BatchTopK",
    "Gated",
    "JumpReLU",
    "MatryoshkaBatchTopK",
    "Objective",
    "ReLU",
    "Splice",
    "TopK",
    "objective_of",
]
