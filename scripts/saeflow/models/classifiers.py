"""Small image classifiers: members of one architecture stacked in one module, with a hook point at every layer.

Everything between layers has the shape [members, images, units]; a convolution's units are its channels, rows and
columns, flattened in that order.
"""

import copy
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saeflow.config.images import ARCHITECTURES, Layers
from saeflow.config.sections import Architecture
from saeflow.reproduce import write_json

Images = Float[Tensor, "images 1 h w"] | Float[Tensor, "members images 1 h w"]
_BUILD = ("architecture", "image_shape", "n_classes", "n_members")


class ClassifierError(ValueError):
    """A classifier that does not exist, cannot be read, or has no such hook point; the message says what is there."""


class Dense(nn.Module):
    """y = x W + b, for each member."""

    def __init__(self, n_members: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.fan_in, self.d_out = d_in, d_out
        self.weight = nn.Parameter(torch.zeros(n_members, d_in, d_out))
        self.bias = nn.Parameter(torch.zeros(n_members, d_out))

    def forward(self, x: Float[Tensor, "members images d_in"]) -> Float[Tensor, "members images d_out"]:
        return torch.baddbmm(self.bias[:, None], x, self.weight)


class Convolution(nn.Module):
    """y = W * x + b over the image, for each member: 3 x 3, stride 2, padding 1."""

    def __init__(self, n_members: int, shape_in: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        c, h, w = shape_in
        self.shape_in, self.shape_out = shape_in, (channels, (h + 1) // 2, (w + 1) // 2)
        self.fan_in, self.d_out = 9 * c, channels * self.shape_out[1] * self.shape_out[2]
        self.weight = nn.Parameter(torch.zeros(n_members, channels, c, 3, 3))
        self.bias = nn.Parameter(torch.zeros(n_members, channels))

    def forward(self, x: Float[Tensor, "members images d_in"]) -> Float[Tensor, "members images d_out"]:
        # One call per member: a grouped convolution measured 0.5 (28 x 28) to 1.6 (8 x 8) times as fast.
        images = x.unflatten(-1, self.shape_in)
        members = zip(images, self.weight, self.bias, strict=True)
        return torch.stack([nn.functional.conv2d(i, w, b, stride=2, padding=1).flatten(1) for i, w, b in members])


class StackedClassifier(nn.Module):
    """x_0 = image;  x_l = relu(W_l x_{l-1} + b_l);  logits = W_L x_{L-1} + b_L;  for each of m members at once.

    The values before and after each ReLU are the hook points `<layer>.pre` and `<layer>.post`, the layers being
    `conv1`, ..., `hidden1`, ...; the last hook point is `logits`. `first` and `last` stand for the first and the last
    layer that has a ReLU, so ConvNet's `first` is a convolution. Parameters are `layers[<layer>].weight`
    [m, d_in, d_out] (a convolution's: [m, c_out, c_in, 3, 3]) and `.bias` [m, d_out]; zero until `initialize`.

    Arguments:
        architecture: a key of `saeflow.config.images.ARCHITECTURES`, or the name that `layers` go by.
        image_shape: height and width in pixels.
        n_classes: number of logits.
        n_members: number of networks, m.
        layers: those of an architecture that is not built in.
    """

    def __init__(
        self,
        architecture: Architecture,
        image_shape: Sequence[int],
        n_classes: int,
        n_members: int = 1,
        layers: Layers | None = None,
    ) -> None:
        super().__init__()
        if layers is None and architecture not in ARCHITECTURES:
            raise ClassifierError(f"architecture: '{architecture}' is none of {', '.join(ARCHITECTURES)}")
        self.architecture, self.image_shape = architecture, tuple(image_shape)
        self.spec = layers or ARCHITECTURES[architecture]
        self.n_classes, self.n_members = n_classes, n_members
        self.layers = nn.ModuleDict()
        shape = (1, *self.image_shape)
        for i, channels in enumerate(self.spec.channels, 1):
            self.layers[f"conv{i}"] = layer = Convolution(n_members, shape, channels)
            shape = layer.shape_out
        d = math.prod(shape)
        for i, units in enumerate(self.spec.hidden, 1):
            self.layers[f"hidden{i}"] = Dense(n_members, d, units)
            d = units
        self._hook_points = self.spec.hook_points
        self.layers["logits"] = Dense(n_members, d, n_classes)

    @torch.no_grad()
    def initialize(self, seeds: Sequence[int]) -> Self:
        """Draw member i's weights from seed i alone: uniform within sqrt(6 / fan-in) (He et al. 2015, eq. 10); no bias.

        Without that gain the six layers of DeepNN end 2 to 3 points lower on the digits.
        """
        if len(seeds) != self.n_members:
            raise ClassifierError(f"seeds: {len(seeds)} given for {self.n_members} members")
        for i, seed in enumerate(seeds):
            # Drawn on the CPU, so that a member starts alike on every device.
            generator = torch.Generator().manual_seed(seed)
            for layer in self.layers.values():
                bound = math.sqrt(6 / layer.fan_in)
                layer.weight[i] = torch.zeros(layer.weight.shape[1:]).uniform_(-bound, bound, generator=generator)
                layer.bias[i] = 0
        return self

    @property
    def device(self) -> torch.device:
        return self.layers["logits"].bias.device

    def hook_points(self) -> list[str]:
        """Names of the values on the way from image to logits, in that order."""
        return list(self._hook_points)

    def resolve(self, name: str) -> str:
        """Hook point's own name: `first` and `last` replaced.

        Raises:
            ClassifierError: there is no such hook point.
        """
        try:
            return self.spec.resolve(name, self.architecture)
        except ValueError as error:
            raise ClassifierError(f"hook point {error}") from None

    def width(self, name: str) -> int:
        """Number of units at a hook point."""
        return self.layers[self.resolve(name).partition(".")[0]].d_out

    def forward(self, inputs: Images) -> Float[Tensor, "members images classes"]:
        """Logits of images [n, 1, h, w], the same for all members, or of each member's own [m, n, 1, h, w]."""
        return self.values(inputs, ("logits",))["logits"]

    def values(self, inputs: Images, hook_points: Iterable[str]) -> dict[str, Float[Tensor, "members images _"]]:
        """Values at some hook points, from one pass that goes no further than the last of them.

        Arguments:
            inputs: images in [0, 1], [n, 1, h, w] for all members, or each member's own [m, n, 1, h, w].
            hook_points: names, aliases too.
        Returns:
            values [m, n, d] under the names that were asked for.
        Raises:
            ClassifierError: images of another size, or a hook point that is not there.
        """
        expected = (1, *self.image_shape)
        if inputs.shape[-3:] != expected or inputs.shape[:-4] not in ((), (self.n_members,)) or inputs.ndim < 4:
            raise ClassifierError(
                f"inputs: shape {list(inputs.shape)}, {self.architecture} wants [n, {', '.join(map(str, expected))}], "
                f"or that for each of its {self.n_members} members"
            )
        wanted = {name: self.resolve(name) for name in hook_points}
        found: dict[str, Tensor] = {}
        # A set of images that all members share is viewed, not copied.
        value = inputs.flatten(-3).expand(self.n_members, -1, -1)
        for name in self._hook_points:
            if found.keys() == set(wanted.values()):
                break
            value = self._step(name, value)
            if name in wanted.values():
                found[name] = value
        return {name: found[own] for name, own in wanted.items()}

    def run_from(
        self, name: str, activations: Float[Tensor, "members images d"]
    ) -> Float[Tensor, "members images classes"]:
        """Logits when the value at a hook point is `activations`: for splicing, ablation and Jacobians."""
        value = activations
        for later in self._hook_points[self._hook_points.index(self.resolve(name)) + 1 :]:
            value = self._step(later, value)
        return value

    def _step(self, name: str, value: Tensor) -> Tensor:
        """Value at a hook point from the one before it."""
        layer, _, side = name.partition(".")
        return torch.relu(value) if side == "post" else self.layers[layer](value)

    @torch.inference_mode()
    def predict(self, inputs: Images, batch_size: int = 2048) -> Float[Tensor, "members images classes"]:
        """Logits without gradients, `batch_size` images at a time, each moved to the module's device."""
        return torch.cat([self(batch.to(self.device)) for batch in inputs.split(batch_size, dim=-4)], dim=1)

    def select(self, members: Sequence[int]) -> Self:
        """Copy of some members, in the order given."""
        chosen = copy.deepcopy(self)
        chosen.n_members = len(members)
        for parameter in chosen.parameters():
            parameter.data = parameter.data[list(members)]
        return chosen

    def member(self, i: int) -> Self:
        """Copy of one member."""
        return self.select([i])


def concatenate(parts: Sequence[StackedClassifier]) -> StackedClassifier:
    """One stack of the members of several stacks of the same architecture, in order."""
    whole = copy.deepcopy(parts[0])
    whole.n_members = sum(part.n_members for part in parts)
    for parameter, *copies in zip(whole.parameters(), *(part.parameters() for part in parts), strict=True):
        parameter.data = torch.cat([copied.data for copied in copies])
    return whole


def save(classifier: StackedClassifier, path: Path, description: dict[str, Any]) -> None:
    """Write the weights (safetensors, members on the leading axis) and beside them `<stem>.json`.

    Arguments:
        description: what a reader wants to know of the members (classes, seeds, accuracies); goes into the JSON, after
            what `load` needs: architecture, layers, image_shape, n_classes, n_members.
    """
    save_file({name: value.detach().cpu().contiguous() for name, value in classifier.layers.state_dict().items()}, path)
    build = {name: getattr(classifier, name) for name in _BUILD} | {"layers": classifier.spec.model_dump()}
    write_json(path.with_suffix(".json"), description | build)


def describe(path: Path) -> dict[str, Any]:
    """The JSON beside the weights.

    Raises:
        ClassifierError: it is missing or no description of a classifier.
    """
    sidecar = path.with_suffix(".json")
    try:
        description = json.loads(sidecar.read_text(encoding="utf-8"))
        missing = [name for name in (*_BUILD, "layers") if name not in description]
    except (OSError, ValueError, TypeError) as error:
        raise ClassifierError(f"{sidecar}: no description of a classifier: {error}") from None
    if missing:
        raise ClassifierError(f"{sidecar}: no description of a classifier: lacks {', '.join(missing)}")
    return description


def load(path: Path, device: torch.device | str = "cpu", seeds: Sequence[int] | None = None) -> StackedClassifier:
    """Classifiers from `save`, their parameters without gradients.

    Arguments:
        seeds: those of the members that are wanted, in this order; all members as they lie if not given.
    Raises:
        ClassifierError: a file is missing or damaged, weights and description do not fit each other, or a seed is not
            there.
    """
    description = describe(path)
    build = {name: description[name] for name in _BUILD} | {"layers": Layers(**description["layers"])}
    classifier = StackedClassifier(**build)
    try:
        classifier.layers.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ClassifierError(f"{path}: not the weights that its .json describes: {error}") from None
    classifier.requires_grad_(False).to(device)
    if seeds is None:
        return classifier
    held = [member["seed"] for member in description["members"]]
    absent = sorted(set(seeds) - set(held))
    if absent:
        raise ClassifierError(f"{path}: holds seeds {held}, asked for {absent}")
    return classifier.select([held.index(seed) for seed in seeds])
