"""What units do: their activity over images, and what the next layer makes of it."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.injection.protocol import Guard
from saeflow.injection.surgery import by_unit, edges, hidden_layers
from saeflow.models.classifiers import StackedClassifier

_BATCH_SIZE = 2048
_MOST_ROWS = 4096
"""Images that statistics are taken over: all of a small set, an even sample of a large one."""


@dataclass(frozen=True)
class Activity:
    """Values behind the ReLUs, by hidden layer.

    Arguments:
        mean, deviation: over images.  Shapes [m, d].
        contrast: mean over the concept's images less the mean over the other classes'; empty of a target.
    """

    mean: dict[str, Float[Tensor, "m d"]]
    deviation: dict[str, Float[Tensor, "m d"]]
    contrast: dict[str, Float[Tensor, "m d"]]


@torch.no_grad()
def target_activity(target: StackedClassifier, guard: Guard) -> Activity:
    """The target's activity on images of its own classes; needs OWN."""
    images = _sampled(guard.own().images, 0)
    layers = hidden_layers(target)
    sums = {layer: [0, 0] for layer in layers}
    for batch in images.split(_BATCH_SIZE):
        for name, values in target.values(batch, [f"{layer}.post" for layer in layers]).items():
            moments = sums[name.removesuffix(".post")]
            moments[0] = moments[0] + values.sum(1, dtype=torch.float64)
            moments[1] = moments[1] + values.square().sum(1, dtype=torch.float64)
    mean = {layer: first / len(images) for layer, (first, _) in sums.items()}
    variance = {
        layer: (second / len(images) - mean[layer].square()).clamp(min=0) for layer, (_, second) in sums.items()
    }
    return Activity(
        {layer: value.float() for layer, value in mean.items()},
        {layer: value.sqrt().float() for layer, value in variance.items()},
        {},
    )


@torch.no_grad()
def source_activity(source: StackedClassifier, guard: Guard) -> Activity:
    """The source's activity on its own training images; needs SOURCE."""
    found = Activity({}, {}, {})
    for layer in hidden_layers(source):
        values, labels = guard.source_activations(f"{layer}.post")
        # Rows come sorted by class, so that an even sample has as much of each.
        values, labels = _sampled(values, 1), _sampled(labels, 0)
        is_concept = labels == guard.task.concept
        found.deviation[layer], found.mean[layer] = torch.std_mean(values, 1, correction=0)
        found.contrast[layer] = values[:, is_concept].mean(1) - values[:, ~is_concept].mean(1)
    return found


def _sampled(rows: Tensor, dim: int) -> Tensor:
    """Every n-th row, at most `_MOST_ROWS`."""
    stride = -(-rows.shape[dim] // _MOST_ROWS)
    return rows[(slice(None),) * dim + (slice(None, None, stride),)]


def usage(target: StackedClassifier, activity: Activity | None = None) -> dict[str, Float[Tensor, "m units"]]:
    """How much a unit matters to the next layer: the norm of its outgoing weights times the deviation of its value, or
    times the norm of its incoming weights without an activity."""
    layers = list(target.layers)
    found = {}
    for layer, following in pairwise(layers):
        outgoing = edges(target, following).square().sum((2, 3)).sqrt()
        if activity is None:
            found[layer] = outgoing * edges(target, layer).square().sum((1, 2)).sqrt()
        else:
            found[layer] = outgoing * by_unit(target, layer, activity.deviation[layer]).sum(-1)
    return found
