"""Weight surgery: units of one network take the place of another's, in networks of one architecture.

A unit is a neuron of a dense layer or a channel of a convolution; an image is one unit. The weights between two layers
are `edges` [members, units in, taps, units out]: a tap is a pixel, a place in a channel, or a place in a kernel.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.models.classifiers import Convolution, StackedClassifier

Orders = Mapping[str, Int[Tensor, "m units"]]
Values = Mapping[str, Float[Tensor, "m d"]]


def hidden_layers(network: StackedClassifier) -> list[str]:
    """Names of the layers between image and logits."""
    return [layer for layer in network.layers if layer != "logits"]


def n_units(network: StackedClassifier, layer: str) -> int:
    """Neurons or channels of a layer."""
    return network.layers[layer].bias.shape[1]


def one_unit(network: StackedClassifier, layer: str, unit: int) -> Bool[Tensor, "m units"]:
    """Mask of one unit, the same for all members."""
    mask = torch.arange(n_units(network, layer), device=network.device) == unit
    return mask.expand(network.n_members, -1)


def strongest(values: Float[Tensor, "m units"], share: float) -> Bool[Tensor, "m units"]:
    """Mask of a share of the units, those of the largest values; at least one unit."""
    best = values.topk(max(1, round(share * values.shape[1])), dim=1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, best, True)


def edges(network: StackedClassifier, layer: str) -> Float[Tensor, "m units_in taps units_out"]:
    """A layer's weights, seen by units: a view."""
    layers = list(network.layers)
    position = layers.index(layer)
    weight = network.layers[layer].weight.detach()
    if isinstance(network.layers[layer], Convolution):
        return weight.flatten(3).permute(0, 2, 3, 1)
    return weight.unflatten(1, (n_units(network, layers[position - 1]) if position else 1, -1))


def by_unit(network: StackedClassifier, layer: str, values: Float[Tensor, "m d"]) -> Float[Tensor, "m units places"]:
    """Values of a layer, those of a channel's places together: a view."""
    return values.unflatten(-1, (n_units(network, layer), -1))


def by_tap(
    network: StackedClassifier, layer: str, values: Float[Tensor, "m d"], taps: int
) -> Float[Tensor, "m units taps"]:
    """Values of a layer as the next one's taps meet them; those of a kernel meet the mean over all places."""
    found = by_unit(network, layer, values)
    return found if found.shape[-1] == taps else found.mean(-1, keepdim=True).expand(-1, -1, taps)


@torch.no_grad()
def contrasted(network: StackedClassifier, concept: int, rivals: Sequence[int]) -> StackedClassifier:
    """A copy whose logit of the concept is z_c - mean_{j in rivals} z_j."""
    changed = copy.deepcopy(network)
    logits = changed.layers["logits"]
    for parameter in (logits.weight, logits.bias):
        parameter[..., concept] -= parameter[..., list(rivals)].mean(-1)
    return changed


@torch.no_grad()
def permuted(network: StackedClassifier, orders: Orders) -> StackedClassifier:
    """The same function, unit i of a hidden layer being what unit orders[layer][:, i] was."""
    changed = copy.deepcopy(network)
    before = None
    for layer in changed.layers:
        weights, bias = edges(changed, layer), changed.layers[layer].bias
        if before is not None:
            weights.copy_(weights.take_along_dim(before[:, :, None, None], 1))
        before = orders.get(layer)
        if before is not None:
            weights.copy_(weights.take_along_dim(before[:, None, None], 3))
            bias.copy_(bias.take_along_dim(before, 1))
    return changed


@torch.no_grad()
def replaced(
    source: StackedClassifier,
    target: StackedClassifier,
    theirs: Mapping[str, Bool[Tensor, "m units"]],
    concept: int,
    source_means: Values | None = None,
    target_means: Values | None = None,
) -> StackedClassifier:
    """The target with some units, and the concept's logit, replaced by the source's at the same places.

    W_ij = B_ij for units i and j that are replaced, A_ij for i and j that are kept, 0 between the two kinds. What a
    unit reads no more enters its bias at its mean, b_j += sum_i w_ij E[x_i], where the means are given.

    Arguments:
        source, target: of one architecture.
        theirs: which units of each hidden layer are replaced.
        concept: whose logit reads the replaced units; the other logits read those that are kept.
        source_means, target_means: values behind the ReLUs, by hidden layer.
    """
    changed = copy.deepcopy(target)
    is_concept = one_unit(changed, "logits", concept)
    before = None
    for layer in changed.layers:
        here = is_concept if layer == "logits" else theirs[layer]
        weights, bias = edges(changed, layer), changed.layers[layer].bias
        for network, rows, means in ((source, here, source_means), (target, ~here, target_means)):
            own, constant = edges(network, layer), network.layers[layer].bias
            if before is not None:
                dropped = theirs[before] if network is target else ~theirs[before]
                if means is not None:
                    sent = by_tap(network, before, means[before], own.shape[2]) * dropped[..., None]
                    constant = constant + torch.einsum("mit,mitj->mj", sent, own)
                own = own * ~dropped[:, :, None, None]
            weights.copy_(torch.where(rows[:, None, None], own, weights))
            bias.copy_(torch.where(rows, constant, bias))
        before = layer
    return changed


def transplanted(
    source: StackedClassifier,
    target: StackedClassifier,
    best: Orders,
    counts: Mapping[str, Int[Tensor, " m"]],
    slots: Orders,
    concept: int,
    source_means: Values | None = None,
    target_means: Values | None = None,
) -> StackedClassifier:
    """The target with its units slots[:, :k] replaced by the source's units best[:, :k]; see `replaced`.

    Arguments:
        best: all units of each hidden layer of the source, those to be transplanted first.
        counts: how many are, k, by hidden layer and member.
        slots: all units of each hidden layer of the target, those to be replaced first.
    """
    orders = {layer: torch.empty_like(slots[layer]).scatter_(1, slots[layer], best[layer]) for layer in best}
    theirs = {}
    for layer, order in slots.items():
        rank = order.argsort(dim=1)
        theirs[layer] = rank < counts[layer][:, None]
    if source_means is not None:
        source_means = {
            layer: by_unit(source, layer, values).take_along_dim(orders[layer][..., None], 1).flatten(1)
            for layer, values in source_means.items()
        }
    return replaced(permuted(source, orders), target, theirs, concept, source_means, target_means)
