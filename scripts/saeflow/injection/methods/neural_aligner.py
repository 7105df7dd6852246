"""Method 2: what the source sees of a concept, carried into the target's activation space by a learned map."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.injection import Injection
from saeflow.injection.aligned import SITE, AlignedSpace, Seen, rows_of
from saeflow.injection.alignment import Affine, Map, Sample, fitted
from saeflow.injection.densities import LikelihoodRatio
from saeflow.injection.knowledge import T1, T1_PLUS, T2, B
from saeflow.injection.method import Method, register
from saeflow.injection.networks import Grafted
from saeflow.injection.protocol import Guard
from saeflow.models.classifiers import StackedClassifier

_WIDTH = 256


@register
@dataclass(frozen=True, kw_only=True)
class NeuralAligner(Method):
    """g = argmin sum_i |h_A(x_i) - g(h_B(x_i))|^2;  s = log p(h | g(B's concept)) - log max(own, g(look-alike)).

    g maps the source's last hidden layer to the target's, learned on images that both run on. The source's rows of the
    concept and of the look-alike, carried over, become Gaussians widened by the covariance of g's residual, and are
    weighed against the target's rows of its own classes (`LikelihoodRatio`). Model stitching (Lenc & Vedaldi 2015;
    Bansal et al. 2021) with a density in place of the rest of the network. The network g is affine plus one hidden
    layer of random ReLU units, its output weights in closed form (Huang et al. 2006, "Extreme
    learning machine", eq. 16).

    Arguments:
        aligner: g is affine, or affine plus the hidden layer.
    """

    name = "neural_aligner"
    family = "sae"
    aligner: Literal["affine", "network"] = "affine"

    @classmethod
    def variants(cls, settings: Injection) -> list[Method]:
        return [
            cls(knowledge=T1_PLUS | B, site=SITE),
            cls(knowledge=T1 | B, site=SITE, variant="shared"),
            cls(knowledge=T2 | B, site=SITE, variant="doodles", aligner="network"),
        ]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        task = guard.task
        seen = Seen.of(source, target, guard, self.knowledge)
        if self.aligner == "affine":
            space = AlignedSpace.ridge(seen)
        else:
            layer = guard.once(source, "layer", lambda: HiddenLayer.of(seen.source, guard.generator("hidden layer")))
            space = AlignedSpace(*layer.fitted(seen.target))
        rows = guard.source_activations(SITE)
        concept, lookalike = (space.carried(rows_of(*rows, label)) for label in (task.concept, task.lookalike))
        head = LikelihoodRatio(concept, seen.own_classes, [lookalike])
        return Grafted(target, self.site, {task.concept: head})


@dataclass(frozen=True)
class HiddenLayer:
    """[x, relu(x V + v)]: what a map reads, with random V and v.

    Arguments:
        hidden: V and v of each member.
        read: of the values that it was made for.
    """

    hidden: Affine
    read: Sample

    @classmethod
    def of(cls, x: Sample, generator: torch.Generator) -> Self:
        """The same draw for all members, in units of x."""
        p = x.mean.shape[-1]
        weight = torch.randn(p, _WIDTH, generator=generator).to(x.mean) / p**0.5
        offset = torch.randn(_WIDTH, generator=generator).to(x.mean)
        centre = x.mean.mean(1)[:, None]
        variance = x.covariance.diagonal(dim1=1, dim2=2) + (x.mean - centre).double().square()
        scale = variance.mean(1).sqrt().to(x.mean)[:, None]
        hidden = Affine(weight / scale[..., None], offset - centre / scale * weight.sum(0))
        return cls(hidden, Sample(lambda: (cls._read(hidden, part) for part in x.parts())))

    def fitted(self, y: Sample) -> tuple[Map, Float[Tensor, "m q q"]]:
        """Ridge from what is read to y, as a map from x, and the covariance of what it leaves out."""
        output, left_out = fitted(self.read, y)
        return (lambda rows: output(self._read(self.hidden, rows))), left_out

    @staticmethod
    def _read(hidden: Affine, x: Tensor) -> Tensor:
        return torch.cat([x, hidden(x).relu()], -1)
