"""Older methods that write the concept's SAE latents into the target's activations at inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.alignment import Affine, procrustes, ridge
from saeflow.injection.concept_saes import SITE, ConceptSpace
from saeflow.injection.knowledge import T1, T1_PLUS, B
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Logits, Made, Spliced, Values
from saeflow.injection.protocol import Guard
from saeflow.injection.readouts import class_means, in_logit_units
from saeflow.models.classifiers import StackedClassifier
from saeflow.sae.architectures import SparseAutoencoder

N_LATENTS = 8
"""Latents of the source's SAE that stand for the concept; 4 and 16 transfer within 3 points of each other on MNIST."""
_RIDGE = 0.1
_GATE_RIDGE = 0.03
_EPS = 1e-6


class Gates(nn.Module):
    """g = relu(p) [p > threshold];  p = h W + b;  for each member: a layer of SAE latents, or one gate.

    Arguments:
        weight: [m, d, k].
        bias: [m, k].
        threshold: [m, k]; 0 if not given.
    """

    def __init__(
        self,
        weight: Float[Tensor, "m d k"],
        bias: Float[Tensor, "m k"],
        threshold: Float[Tensor, "m k"] | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        self.threshold = None if threshold is None else nn.Parameter(threshold, requires_grad=False)

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n k"]:
        p = torch.baddbmm(self.bias[:, None], h, self.weight)
        return p.relu() if self.threshold is None else p.relu() * (p > self.threshold[:, None])


def encoder(
    saes: Sequence[SparseAutoencoder], latents: Int[Tensor, "m k"] | None = None, to_source: Affine | None = None
) -> Gates:
    """Latents of SAEs that jump at thresholds, one SAE per member.

    Arguments:
        latents: those that are wanted; all if not given.
        to_source: map from what is encoded to what the SAEs read; none if they are the same.
    """
    weight, shift, bias, threshold = (_stacked(saes, name) for name in ("W_enc", "b_dec", "b_enc", "threshold"))
    if latents is not None:
        weight = weight.take_along_dim(latents[:, None], 2)
        bias, threshold = bias.take_along_dim(latents, 1), threshold.take_along_dim(latents, 1)
    bias = bias - (shift[:, None] @ weight)[:, 0]
    if to_source is not None:
        bias = bias + (to_source.bias[:, None] @ weight)[:, 0]
        weight = to_source.weight @ weight
    return Gates(weight, bias, threshold)


def _stacked(saes: Sequence[SparseAutoencoder], name: str) -> Tensor:
    return torch.stack([getattr(sae, name) for sae in saes])


class Written(Spliced):
    """h' = h + g(h) V;  logits_c = r . h', the others the target's own of h';  h: values at one hook point.

    Arguments:
        target: the network that gets the concept; not changed.
        concept: c.
        gates: g, modules one after another from h to k gates.
        directions: V, what each gate writes.  Shape [m, k, d].
        readout: r.  Shape [m, d].
    """

    def __init__(
        self,
        target: StackedClassifier,
        concept: int,
        gates: nn.Module,
        directions: Float[Tensor, "m k d"],
        readout: Float[Tensor, "m d"],
    ) -> None:
        super().__init__(target, SITE)
        self.concept, self.gates = concept, gates
        self.directions = nn.Parameter(directions, requires_grad=False)
        self.readout = nn.Parameter(readout.clone(), requires_grad=False)

    def write(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n d"]:
        """h'."""
        return torch.baddbmm(h, self.gates(h), self.directions)

    def injected(self, logits: Logits, h: Values, made: Made) -> Logits:
        written = self.write(h)
        logits = self.target.run_from(SITE, written).clone()
        logits[..., self.concept] = (written @ self.readout[..., None])[..., 0]
        return logits


class ConceptLatents(NamedTuple):
    """Latents of the source's SAE that are more active on the concept than on any other class.

    Arguments:
        index: [m, k].
        excess: mean on the concept less the largest mean on another class, at least 0.  Shape [m, k].
        directions: decoder rows in the target's activation space.  Shape [m, k, d].
    """

    index: Int[Tensor, "m k"]
    excess: Float[Tensor, "m k"]
    directions: Float[Tensor, "m k d"]

    @classmethod
    def of(cls, saes: Sequence[SparseAutoencoder], to_target: Affine, guard: Guard) -> "ConceptLatents":
        """The `N_LATENTS` of the largest excess, carried by the map's linear part."""
        space = ConceptSpace(saes)
        rows, labels = guard.source_activations(SITE)
        others = tuple(label for label in guard.task.source_classes if label != guard.task.concept)
        means = class_means(space.encode(rows), labels, (guard.task.concept, *others))
        excess, index = (means[:, 0] - means[:, 1:].amax(1)).topk(min(N_LATENTS, means.shape[-1]), dim=1)
        decoder = _stacked(saes, "W_dec").take_along_dim(index[..., None], 1)
        return cls(index, excess.clamp(min=0), decoder @ to_target.weight)

    @property
    def vector(self) -> Float[Tensor, "m d"]:
        """Sum of the directions, weighted by the excess, of length 1."""
        summed = (self.excess[:, None] @ self.directions)[:, 0]
        return summed / summed.norm(dim=-1, keepdim=True).clamp(min=_EPS)


@register
@dataclass(frozen=True, kw_only=True)
class BasicSAEInjection(Method):
    """h' = h + sum_k z_k v_k;  logit_c = u . h' in units of the target's logits, the others the target's own of h'.

    h are the target's values before its last ReLU; k runs over 8 latents of the source's SAE that exceed on the concept
    their mean on every other class; v_k are their decoder rows in the target's space, by the scaled rotation fitted on
    images of the shared classes; u is their sum weighted by the excess, of length 1. The latents are encoded at
    inference: z = f_B(M' f_A(h) + m), f_A and f_B the encoders of the target's and of the source's SAE, M fitted on
    images of the shared classes (""), or z = f_B(s R' h + o) without the target's SAE (`source_sae`). So the network
    runs an SAE in its forward pass. After the older write-up's description; writing along decoder rows: Templeton et
    al. 2024, "Scaling monosemanticity", "Feature steering".

    Arguments:
        both: whether the target's SAE is read too.
    """

    name = "basic_sae_injection"
    family = "older"
    both: bool = True

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1 | B, site=SITE, variant="source_sae", both=False),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        images = guard.shared().images
        of_source, of_target = guard.activations(source, images, SITE), guard.activations(target, images, SITE)
        saes = guard.concept_saes("source")
        latents = ConceptLatents.of(saes, procrustes(of_source, of_target), guard)
        if self.both:
            read = encoder(guard.concept_saes("target"))
            gates = nn.Sequential(read, encoder(saes, latents.index, ridge(read(of_target), of_source, _RIDGE)))
        else:
            gates = encoder(saes, latents.index, procrustes(of_target, of_source))
        network = Written(target, guard.task.concept, gates, latents.directions, latents.vector)
        images = guard.own().images if self.both else images
        written = network.write(guard.activations(target, images, SITE))
        score = (written @ latents.vector[..., None])[..., 0]
        network.readout *= in_logit_units(score, target, images, guard)[:, None]
        return network


@register
@dataclass(frozen=True, kw_only=True)
class PreservedInjection(Method):
    """h' = h + relu(w . d) v,  d = h - m;  logit_c = w . h' in units of the target's logits, the others its own of h'.

    Several objectives, each quadratic, so that both minima are in closed form:

    w = argmin E_own[(w . d)^2] + 0.1 E_c[(w . d - 1)^2] + 0.3 E_other[(w . d)^2] + penalty |w|^2
    v = argmin |v - u|^2 + 100 E_own[|W' D v|^2] d / tr E_own[D W W' D]

    w answers to the concept, to no class of the target's and to no other class that only the source knows; v is the
    direction u of the concept's SAE latents, as in the basic injection, without what moves the target's own logits. m
    is the mean of h on the target's classes, W its logit rows, D the derivative of its ReLU. Rows of the concept and of
    other classes are the source's, carried by the scaled rotation fitted on images of the shared classes. The SAE runs
    before inference only. After the older write-up's description.

    Arguments:
        concept_weight, other_weight: of the terms of w.
        preservation_weight: of the second term of v.
    """

    name = "preserved_injection"
    family = "older"
    concept_weight: float = 0.1
    other_weight: float = 0.3
    preservation_weight: float = 100.0

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1_PLUS | B, site=SITE, variant="strict", other_weight=1.0),
        ]

    @property
    def draws(self) -> str:
        """One name for all variants: they differ in their gates only."""
        return self.name

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        images, own = guard.shared().images, guard.own().images
        rows = guard.activations(target, own, SITE)

        def fitted() -> tuple[Affine, Float[Tensor, "m d"]]:
            to_target = procrustes(guard.activations(source, images, SITE), guard.activations(target, images, SITE))
            latents = ConceptLatents.of(guard.concept_saes("source"), to_target, guard)
            return to_target, self._direction(latents.vector, rows, target, guard)

        to_target, direction = guard.once_for_pair("map and direction", fitted)
        gate = self._gate(rows, to_target, guard)
        gates = Gates(gate[..., None], -(rows.mean(1) * gate).sum(-1, keepdim=True))
        network = Written(target, guard.task.concept, gates, direction[:, None], gate)
        score = (network.write(rows) @ gate[..., None])[..., 0]
        network.readout *= in_logit_units(score, target, own, guard)[:, None]
        return network

    def _gate(self, rows: Float[Tensor, "m n d"], to_target: Affine, guard: Guard) -> Float[Tensor, "m d"]:
        """w."""
        task = guard.task
        mean = rows.mean(1, keepdim=True)
        carried, labels = guard.source_activations(SITE)
        known = torch.tensor((task.concept, *task.shared), device=labels.device)
        concept = to_target(carried[:, labels == task.concept]) - mean
        others = to_target(carried[:, ~torch.isin(labels, known)]) - mean
        gram = _second_moment(rows - mean) + self.concept_weight * _second_moment(concept)
        if others.shape[1]:
            gram = gram + self.other_weight * _second_moment(others)
        return torch.linalg.solve(_ridged(gram, _GATE_RIDGE), self.concept_weight * concept.mean(1))

    def _direction(
        self, vector: Float[Tensor, "m d"], rows: Float[Tensor, "m n d"], target: StackedClassifier, guard: Guard
    ) -> Float[Tensor, "m d"]:
        """v."""
        logits = target.layers["logits"].weight[..., list(guard.task.target_classes)]
        active = (rows > 0).to(rows)
        # E[D W W' D] = (W W') o E[active active'].
        moved = (logits @ logits.mT) * _second_moment(active)
        scale = moved.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=_EPS)
        identity = torch.eye(moved.shape[-1], device=moved.device)
        return torch.linalg.solve(identity + self.preservation_weight * moved / scale, vector)


def _second_moment(rows: Float[Tensor, "m n d"]) -> Float[Tensor, "m d d"]:
    return rows.mT @ rows / rows.shape[1]


def _ridged(matrix: Float[Tensor, "m d d"], penalty: float) -> Float[Tensor, "m d d"]:
    """The matrix with a share of its mean diagonal added to the diagonal."""
    matrix.diagonal(dim1=1, dim2=2).add_(penalty * matrix.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    return matrix
