"""Older methods that move the source's way to the concept's logit into units that the target hardly uses."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.knowledge import T0, B, Knowledge
from saeflow.injection.method import Method, register, require_equal
from saeflow.injection.protocol import Guard
from saeflow.injection.surgery import (
    Values,
    by_tap,
    by_unit,
    contrasted,
    edges,
    hidden_layers,
    one_unit,
    strongest,
    transplanted,
)
from saeflow.injection.unit_statistics import Activity, source_activity, target_activity, usage
from saeflow.models.classifiers import StackedClassifier


@dataclass(frozen=True)
class _Operation:
    """Both networks, what is known of their units, and the graft."""

    source: StackedClassifier
    target: StackedClassifier
    concept: int
    source_activity: Activity | None
    target_activity: Activity | None

    @classmethod
    def prepare(
        cls, source: StackedClassifier, target: StackedClassifier, guard: Guard, *, activity: bool
    ) -> "_Operation":
        """With the activity of each network on images of its own classes, or from the weights alone."""
        require_equal(source, target)
        task = guard.task
        rivals = [label for label in task.source_classes if label != task.concept]
        return cls(
            contrasted(source, task.concept, rivals),
            target,
            task.concept,
            source_activity(source, guard) if activity else None,
            target_activity(target, guard) if activity else None,
        )

    @property
    def contrast(self) -> Values | None:
        return None if self.source_activity is None else self.source_activity.contrast

    def graft(
        self, strength: Mapping[str, Float[Tensor, "m units"]], chosen: Mapping[str, Bool[Tensor, "m units"]]
    ) -> StackedClassifier:
        """The target with the chosen units of the source, the strongest in place of the least used."""
        used = usage(self.target, self.target_activity)
        best = {layer: values.masked_fill(~chosen[layer], -torch.inf) for layer, values in strength.items()}
        return transplanted(
            self.source,
            self.target,
            {layer: values.argsort(dim=1, descending=True, stable=True) for layer, values in best.items()},
            {layer: mask.sum(1) for layer, mask in chosen.items()},
            {layer: values.argsort(dim=1, stable=True) for layer, values in used.items()},
            self.concept,
            None if self.source_activity is None else self.source_activity.mean,
            None if self.target_activity is None else self.target_activity.mean,
        )


def path_strengths(
    network: StackedClassifier, concept: int, contrast: Values | None
) -> dict[str, Float[Tensor, "m units"]]:
    """Sum over all paths from a unit to the concept's logit of the product of |weights|, times |contrast| of the unit.

    The path norm of Neyshabur et al. 2015, "Path-SGD", sec. 2, with power 1, from hidden layers on.

    Arguments:
        contrast: of the units' values between the concept and other classes; none counts every unit alike.
    """
    layers = list(network.layers)
    ways = one_unit(network, "logits", concept).to(network.layers["logits"].bias)
    found = {}
    for layer, before in zip(reversed(layers), reversed(layers[:-1]), strict=False):
        ways = torch.einsum("mij,mj->mi", edges(network, layer).abs().sum(2), ways)
        found[before] = ways
    if contrast is not None:
        found = {layer: ways * by_unit(network, layer, contrast[layer]).abs().sum(-1) for layer, ways in found.items()}
    return {layer: found[layer] for layer in hidden_layers(network)}


def cascade(
    network: StackedClassifier, concept: int, fans: tuple[int, ...], contrast: Values | None
) -> dict[str, Bool[Tensor, "m units"]]:
    """Units of a tree that starts at the concept's logit: fans[0] units of the last hidden layer, fans[1] units of the
    layer before for each of these, and so on, the last fan again for layers beyond; each unit once.

    A unit's children are those of the largest |sum_t d_t w_t| over taps t, d the contrast of the child's value; of the
    largest norm of w without a contrast. A fan beyond a layer's width takes the whole layer.
    """
    layers = list(network.layers)
    parents = one_unit(network, "logits", concept)
    found = {}
    for depth, (layer, before) in enumerate(zip(reversed(layers), reversed(layers[:-1]), strict=False)):
        weights = edges(network, layer)
        if contrast is None:
            links = weights.square().sum(2).sqrt()
        else:
            sent = by_tap(network, before, contrast[before], weights.shape[2])
            links = torch.einsum("mit,mitj->mij", sent, weights).abs()
        fan = min(fans[min(depth, len(fans) - 1)], links.shape[1])
        children = torch.zeros_like(links, dtype=torch.bool).scatter_(1, links.topk(fan, dim=1).indices, True)
        found[before] = parents = (children & parents[:, None]).any(-1)
    return {layer: found[layer] for layer in hidden_layers(network)}


@register
@dataclass(frozen=True, kw_only=True)
class PathwayTransplant(Method):
    """The source's units of the strongest paths to the concept's logit take the place of the target's least used ones.

    Strength of unit j: |E[x_j | concept] - E[x_j | other classes]| sum over paths of prod |w|, the share is taken in
    each hidden layer. Least used: smallest sd(x_j) |w_j,out|. Units of the source read one another as there, those of
    the target as before, what is cut enters the bias at its mean, and the logit z_c - mean_j z_j over the source's
    other classes j reads the transplant. `weights_only`: strength without the activity, use by |w_j,in| |w_j,out|, no
    means. After the older write-up's description.

    Arguments:
        share: of a layer's units.
        activity: whether activations count, or weights alone.
    """

    name = "pathway_transplant"
    family = "older"
    equal_architectures = True
    share: float = 0.5
    activity: bool = True

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=Knowledge.OWN | B, site="weights", variant="half"),
            cls(knowledge=Knowledge.OWN | B, site="weights", variant="quarter", share=0.25),
            cls(knowledge=T0, site="weights", variant="weights_only", activity=False),
        ]

    @torch.no_grad()
    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        operation = _Operation.prepare(source, target, guard, activity=self.activity)
        strength = path_strengths(operation.source, operation.concept, operation.contrast)
        chosen = {layer: strongest(values, self.share) for layer, values in strength.items()}
        return operation.graft(strength, chosen)


@register
@dataclass(frozen=True, kw_only=True)
class CascadeTransplant(Method):
    """24 units of the source's last hidden layer, 6 of the layer before for each, then 4, then 3, and the logit row.

    The 24 are those of the largest |(E[x_j | concept] - E[x_j | other classes]) w_j| at the logit z_c - mean_j z_j over
    the source's other classes j; a unit's children are chosen alike, and a unit that is chosen twice is moved once.
    They replace the target's least used units (smallest sd(x_j) |w_j,out|) with their incoming weights, read one
    another as at the source, and what is cut enters the bias at its mean. A network of fewer layers ends the list
    sooner, a deeper one goes on with 3. `weights_only`: children by |w|, use by |w_j,in| |w_j,out|, no means. After the
    older write-up's description.

    Arguments:
        fans: children of the logit, of a unit of the last hidden layer, and so on.
        activity: whether activations count, or weights alone.
    """

    name = "cascade_transplant"
    family = "older"
    equal_architectures = True
    fans: tuple[int, ...] = (24, 6, 4, 3)
    activity: bool = True

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=Knowledge.OWN | B, site="weights"),
            cls(knowledge=T0, site="weights", variant="weights_only", activity=False),
        ]

    @torch.no_grad()
    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        operation = _Operation.prepare(source, target, guard, activity=self.activity)
        strength = path_strengths(operation.source, operation.concept, operation.contrast)
        chosen = cascade(operation.source, operation.concept, self.fans, operation.contrast)
        return operation.graft(strength, chosen)
