"""What each variant optimises: one class per variant, with its loss and exact gradients."""

from saeflow import config
from saeflow.sae.objectives.base import Objective, Splice
from saeflow.sae.objectives.gated import Gated
from saeflow.sae.objectives.jumprelu import JumpReLU
from saeflow.sae.objectives.relu import ReLU
from saeflow.sae.objectives.topk import BatchTopK, MatryoshkaBatchTopK, TopK

_OBJECTIVES: dict[type[config.SparseAutoencoder], type[Objective]] = {
    config.ReLU: ReLU,
    config.Gated: Gated,
    config.JumpReLU: JumpReLU,
    config.TopK: TopK,
    config.BatchTopK: BatchTopK,
    config.MatryoshkaBatchTopK: MatryoshkaBatchTopK,
}


def objective_of(spec: config.SparseAutoencoder) -> type[Objective]:
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
