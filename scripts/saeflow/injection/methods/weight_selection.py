"""Older methods that copy or blend weights of the source at their own places in a target of the same architecture."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.knowledge import T0, T1, B
from saeflow.injection.method import Method, register, require_equal
from saeflow.injection.protocol import Guard
from saeflow.injection.surgery import by_unit, contrasted, hidden_layers, n_units, replaced, strongest
from saeflow.injection.unit_statistics import source_activity
from saeflow.models.classifiers import StackedClassifier

_BATCH_SIZE = 2048


def _copy_row(source: StackedClassifier, changed: StackedClassifier, concept: int) -> None:
    """Give a network the source's logit row of the concept."""
    theirs, ours = source.layers["logits"], changed.layers["logits"]
    ours.weight[..., concept] = theirs.weight[..., concept]
    ours.bias[:, concept] = theirs.bias[:, concept]


@register
@dataclass(frozen=True, kw_only=True)
class DirectWeightCopy(Method):
    """w_c^A = w_c^B, b_c^A = b_c^B: the concept's logit row, read by the target's own last layer ("").

    `last_layer`: the last hidden layer's weights too. `half_of_units`: the second half of the units of every layer are
    the source's, wired among themselves as there and read by the concept's row alone, the first half the target's.
    After the older write-up's description; nothing aligns the units of the two networks.
    """

    name = "direct_weight_copy"
    family = "older"
    equal_architectures = True
    what: Literal["row", "last_layer", "half_of_units"] = "row"

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T0, site="last.post"),
            cls(knowledge=T0, site="weights", variant="last_layer", what="last_layer"),
            cls(knowledge=T0, site="weights", variant="half_of_units", what="half_of_units"),
        ]

    @torch.no_grad()
    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        require_equal(source, target)
        concept, layers = guard.task.concept, hidden_layers(target)
        if self.what == "half_of_units":
            return replaced(source, target, {layer: _second_half(target, layer) for layer in layers}, concept)
        changed = copy.deepcopy(target)
        if self.what == "last_layer":
            changed.layers[layers[-1]].load_state_dict(source.layers[layers[-1]].state_dict())
        _copy_row(source, changed, concept)
        return changed


def _second_half(network: StackedClassifier, layer: str) -> Bool[Tensor, "m units"]:
    n = n_units(network, layer)
    return (torch.arange(n, device=network.device) >= n // 2).expand(network.n_members, -1)


@register
@dataclass(frozen=True, kw_only=True)
class GradualBlending(Method):
    """theta_l = (1 - t_l) theta_l^A + t_l theta_l^B,  t_l = t^(L - l + 1), l = 1, ..., L: most at the output.

    Of the last layer only the concept's logit row is blended. t = 0 is the target, t = 1 the source behind the target's
    other rows. After the older write-up's description; interpolation of weights: Frankle et al. 2020, "Linear mode
    connectivity", sec. 2; Wortsman et al. 2022, "Model soups".

    Arguments:
        t: share of the source at the output.
    """

    name = "gradual_blending"
    family = "older"
    equal_architectures = True
    t: float = 0.5

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [cls(knowledge=T0, site="weights", variant=f"t_{t:g}".replace(".", "_"), t=t) for t in (0.5, 0.25, 0.75)]

    @torch.no_grad()
    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        require_equal(source, target)
        concept, layers = guard.task.concept, list(target.layers)
        changed = copy.deepcopy(target)
        for height, layer in enumerate(layers):
            share = self.t ** (len(layers) - height)
            rows = concept if layer == "logits" else slice(None)
            for ours, theirs in zip(changed.layers[layer].parameters(), source.layers[layer].parameters(), strict=True):
                ours[..., rows] = torch.lerp(ours[..., rows], theirs[..., rows], share)
        return changed


@register
@dataclass(frozen=True, kw_only=True)
class ImportanceSelection(Method):
    """theta_i^A = theta_i^B for the share of each hidden layer's parameters of largest |theta_i^B E[dz_c / dtheta_i]|.

    z_c is the source's logit of the concept, whose row is copied whole. First-order Taylor importance: Molchanov et al.
    2019, "Importance estimation for neural network pruning", sec. 3, with the logit for the loss. The mean runs over
    images of the concept ("") or of the shared classes (`shared_images`). Of the concept only activations are given, so
    a parameter of the first layer then counts as the mean of its unit's, |E[x_j dz_c / dx_j]| / n with x_j the unit's
    value before the ReLU. After the older write-up's description; nothing aligns the units of the two networks.

    Arguments:
        share: of the parameters.
        over: the images of the mean.
    """

    name = "importance_selection"
    family = "older"
    equal_architectures = True
    share: float = 0.2
    over: Literal["concept", "shared"] = "concept"

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=B, site="weights"),
            cls(knowledge=T1, site="weights", variant="shared_images", over="shared"),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        require_equal(source, target)
        importance = on_concept(source, guard) if self.over == "concept" else on_shared_images(source, guard)
        changed = copy.deepcopy(target)
        with torch.no_grad():
            for layer, values in importance.items():
                mask = strongest(values, self.share)
                ours, theirs = changed.layers[layer], source.layers[layer]
                of_weight, of_bias = mask.split([mask.shape[1] - ours.bias.shape[1], ours.bias.shape[1]], dim=1)
                ours.weight.copy_(torch.where(of_weight.view_as(ours.weight), theirs.weight, ours.weight))
                ours.bias.copy_(torch.where(of_bias, theirs.bias, ours.bias))
            _copy_row(source, changed, guard.task.concept)
        return changed


def _taylor(network: StackedClassifier, layer: str) -> Float[Tensor, "m parameters"]:
    """|theta dz / dtheta| of a layer's weights and biases, from gradients."""
    return torch.cat([(p * p.grad).detach().flatten(1) for p in network.layers[layer].parameters()], dim=1).abs()


def on_shared_images(source: StackedClassifier, guard: Guard) -> Mapping[str, Float[Tensor, "m parameters"]]:
    """Importance of the parameters of each hidden layer, weights first; needs SHARED."""
    network = copy.deepcopy(source).requires_grad_(True)
    images = guard.shared().images
    for batch in images.split(_BATCH_SIZE):
        (network(batch)[..., guard.task.concept].sum() / len(images)).backward()
    return {layer: _taylor(network, layer) for layer in hidden_layers(network)}


def on_concept(source: StackedClassifier, guard: Guard) -> Mapping[str, Float[Tensor, "m parameters"]]:
    """The same, from the source's activations on images of the concept; needs SOURCE."""
    network = copy.deepcopy(source).requires_grad_(True)
    rows, labels = guard.source_activations("first.pre")
    rows = rows[:, labels == guard.task.concept]
    of_units = 0
    for values in rows.split(_BATCH_SIZE, dim=1):
        values = values.detach().requires_grad_(True)
        (network.run_from("first.pre", values)[..., guard.task.concept].sum() / rows.shape[1]).backward()
        of_units = of_units + (values * values.grad).detach().sum(1)
    first, *rest = hidden_layers(network)
    return {first: _spread(network, first, of_units)} | {layer: _taylor(network, layer) for layer in rest}


def _spread(network: StackedClassifier, layer: str, of_units: Float[Tensor, "m d"]) -> Float[Tensor, "m parameters"]:
    """Importance of units, over all places, shared out evenly among the weights and the bias of each."""
    weight, bias = network.layers[layer].parameters()
    units = by_unit(network, layer, of_units).sum(-1).abs() / (weight[0].numel() / bias.shape[1] + 1)
    # Units are the last axis of a dense weight, the first of a convolution's.
    of_weights = units[:, None] if weight.ndim == 3 else units[..., None, None, None]
    return torch.cat([of_weights.expand_as(weight).flatten(1), units], dim=1)


@register
@dataclass(frozen=True, kw_only=True)
class ActivationSelection(Method):
    """Units of the highest |E[x_j | concept] - E[x_j | other classes]| / sd(x_j) at the source replace the target's.

    x_j is a unit's value behind the ReLU on the source's training images, over all places for a channel; the share is
    taken in each hidden layer, at the same places in both networks. Units of the source read one another, with the mean
    of those left out in their bias, and the logit z_c - mean_j z_j over the source's other classes j reads them; units
    of the target read one another. After the older write-up's description.

    Arguments:
        share: of a layer's units.
    """

    name = "activation_selection"
    family = "older"
    equal_architectures = True
    share: float = 0.25

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=B, site="weights", variant="quarter"),
            cls(knowledge=B, site="weights", variant="half", share=0.5),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        require_equal(source, target)
        task, activity = guard.task, source_activity(source, guard)
        theirs = {}
        for layer, contrast in activity.contrast.items():
            deviation = by_unit(source, layer, activity.deviation[layer]).sum(-1)
            selectivity = by_unit(source, layer, contrast).abs().sum(-1) / deviation.clamp(min=1e-6)
            theirs[layer] = strongest(selectivity, self.share)
        rivals = [label for label in task.source_classes if label != task.concept]
        return replaced(contrasted(source, task.concept, rivals), target, theirs, task.concept, activity.mean)
