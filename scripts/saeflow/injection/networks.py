"""Injected networks: a target with a new way to its concept's logit, and what that costs at inference."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saeflow.models.classifiers import Images, StackedClassifier

Logits = Float[Tensor, "m n classes"]
Values = Float[Tensor, "m n d"]
Made = Mapping[nn.Module, Float[Tensor, "m n *_"]]
"""By class, what a module that several injected networks have makes of the values."""


class Head(nn.Module):
    """s = w_L relu(... relu(W_1 h + b_1) ...) + b_L: a concept's score of the values h at a hook point, per member.

    With one layer the score is linear, s = w h + b.

    Arguments:
        layers: weight [m, d_in, d_out] and bias [m, d_out] of each layer; the last has d_out = 1.
    """

    def __init__(self, *layers: tuple[Float[Tensor, "m _ _"], Float[Tensor, "m _"]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(weight.detach(), requires_grad=False) for weight, _ in layers])
        self.biases = nn.ParameterList([nn.Parameter(bias.detach(), requires_grad=False) for _, bias in layers])

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n"]:
        *hidden, (weight, bias) = zip(self.weights, self.biases, strict=True)
        for w, b in hidden:
            h = torch.baddbmm(b[:, None], h, w).relu_()
        # The row in front: a product with a column behind costs ten times as much.
        return torch.baddbmm(bias[:, None], weight.mT, h.mT)[:, 0]

    def raised(self, by: float) -> "Head":
        """A head whose score is so much higher."""
        *first, (weight, bias) = zip(self.weights, self.biases, strict=True)
        return Head(*first, (weight, bias + by))


class Layer(nn.Module):
    """relu(h W + b).

    Arguments:
        weight, bias: [m, d, k] and [m, k].
    """

    def __init__(self, weight: Float[Tensor, "m d k"], bias: Float[Tensor, "m k"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n k"]:
        return torch.baddbmm(self.bias[:, None], h, self.weight).relu_()


class Assembled(nn.Module, ABC):
    """score = combine(part_1(h), ..., part_n(h)).

    Arguments:
        parts: modules that read h, each row by itself. What heads of one target have in common is one module, so that
            it need not run for each.
    """

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @abstractmethod
    def combine(self, *made: Tensor) -> Float[Tensor, "m n"]:
        """The score, of what each part makes of h."""

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n"]:
        return self.combine(*(part(h) for part in self.parts))


class Upon(Assembled):
    """head(layer(h))."""

    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__(layer)
        self.head = head

    def combine(self, made: Float[Tensor, "m n k"]) -> Float[Tensor, "m n"]:
        return self.head(made)


class Gate(nn.Module):
    """1000 s(h): a score whose sign outweighs every other logit, so that the score alone decides."""

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n"]:
        return 1000 * self.score(h)


class Spliced(nn.Module, ABC):
    """logits = injected(logits of the target, h);  h: the target's values at one hook point.

    Arguments:
        target: the network that gets the concept; not changed.
        site: hook point.
    """

    def __init__(self, target: StackedClassifier, site: str) -> None:
        super().__init__()
        self.target, self.site = target, target.resolve(site)

    def parts(self) -> list[nn.Module]:
        """What reads h and other injected networks may hold too; none unless a subclass has some."""
        return []

    @abstractmethod
    def injected(self, logits: Logits, h: Values, made: Made) -> Logits:
        """The injected network's logits, when the target's logits and values are known.

        Arguments:
            logits, h: of the target.
            made: by the modules of `parts()`, of h.
        """

    def forward(self, images: Images) -> Float[Tensor, "m n classes"]:
        values = self.target.values(images, ("logits", self.site))
        h = values[self.site]
        return self.injected(values["logits"], h, {part: part(h) for part in self.parts()})


class Grafted(Spliced):
    """logits_c = head_c(h);  the other logits are the target's own;  h: the target's values at one hook point.

    Arguments:
        target: the network that gets the concept; not changed.
        site: hook point that the heads read.
        heads: by class, modules from values [m, n, d] to scores [m, n].
    """

    def __init__(self, target: StackedClassifier, site: str, heads: Mapping[int, nn.Module]) -> None:
        super().__init__(target, site)
        self.heads = nn.ModuleDict({str(label): head for label, head in heads.items()})

    def parts(self) -> list[nn.Module]:
        """Those of all heads, each once."""
        assembled = [head for head in self.heads.values() if isinstance(head, Assembled)]
        return list(dict.fromkeys(part for head in assembled for part in head.parts))

    def injected(self, logits: Logits, h: Values, made: Made) -> Logits:
        logits = logits.clone()
        for label, head in self.heads.items():
            known = isinstance(head, Assembled)
            logits[..., int(label)] = head.combine(*(made[part] for part in head.parts)) if known else head(h)
        return logits


@torch.no_grad()
def multiply_adds(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-adds of one image through one member: those of its matrix products and convolutions."""
    image = torch.zeros(1, 1, *image_shape, device=next(network.parameters()).device)
    with _Counter() as counter:
        n_members = len(network(image))
    return counter.multiply_adds // n_members


class _Counter(TorchFunctionMode):
    """Counts from the shapes of each product that is called. torch's own counter imports the compiler: 6 s a job."""

    multiply_adds = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.__name__
        if name in ("matmul", "__matmul__", "bmm", "mm", "linear"):
            self.multiply_adds += result.numel() * args[0].shape[-1]
        elif name == "__rmatmul__":
            self.multiply_adds += result.numel() * args[0].shape[-2]
        elif name in ("baddbmm", "addmm"):
            self.multiply_adds += result.numel() * args[1].shape[-1]
        elif name == "conv2d":
            self.multiply_adds += result.numel() * args[1][0].numel()
        elif name == "einsum":
            raise TypeError("multiply_adds: einsum is not counted; write the product as a matmul")
        return result


def n_parameters(network: nn.Module, n_members: int) -> int:
    """Parameters of one member."""
    return sum(parameter.numel() for parameter in network.parameters()) // n_members
