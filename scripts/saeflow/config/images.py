"""The sections of networks of images: data, architectures, capture, and what is worked out for their features."""

import difflib
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from saeflow.config.sections import (
    Architecture,
    Count,
    Each,
    HookPoint,
    InOrder,
    Jobs,
    Label,
    Name,
    Named,
    Part,
    PathToRead,
    Rate,
    Rows,
    Section,
    Seeds,
    ShareBelowOne,
    Width,
    number,
    whole,
)

Dataset = Literal["digits", "mnist", "fashion_mnist", "kmnist", "emnist_letters"]

IMAGES_OF_CLASS: dict[Dataset, tuple[int, ...]] = {
    "digits": (178, 182, 177, 183, 181, 182, 181, 179, 174, 180),
    "mnist": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "fashion_mnist": (6000,) * 10,
    "kmnist": (6000,) * 10,
    "emnist_letters": (4800,) * 26,
}
"""Images by class: all of the digits, which the study divides, and the training images of the other sets."""

N_CLASSES: dict[Dataset, int] = {name: len(images) for name, images in IMAGES_OF_CLASS.items()}


def n_taken(key: str, share: float, label: int, n: int) -> int:
    """Images that a share takes of the `n` of a class.

    Raises:
        ValueError: none, or all.
    """
    taken = round(share * n)
    if not 0 < taken < n:
        raise ValueError(f"{key}: {share:g} takes {taken} of {n} images of class {label}; each part needs one")
    return taken


class Data(Section):
    """The images that every classifier and analysis of the study sees."""

    name: Dataset = Field(
        "digits", description="`digits` is scikit-learn's and needs no file; the others have MNIST's layout."
    )
    data_dir: PathToRead | None = Field(
        None,
        description="Folder that holds `<Name>/raw/*-ubyte.gz` (torchvision's layout) or the files themselves, packed "
        "or not, under their own or Kaggle's names, or a zip archive of them: they are compared by what they hold. "
        "Without it they are downloaded.",
    )
    test_share: number(ge=0.01, le=0.99) = Field(
        0.25, description="Share of `digits` held out as test split, by class. The other sets bring their own split."
    )

    calibration_share: ShareBelowOne = Field(
        0.0,
        description="Share of the training split, by class, that no network is trained on: what thresholds are "
        "calibrated on (`injection` needs it).",
    )

    @model_validator(mode="after")
    def _digits_is_embedded(self) -> Self:
        if self.name == "digits" and self.data_dir is not None:
            raise ValueError(
                f"data_dir: {self.data_dir!r} is of no use to 'digits', which is embedded; drop one of the two"
            )
        return self

    @model_validator(mode="after")
    def _every_part_has_images(self) -> Self:
        _ = self.training_images
        return self

    @property
    def training_images(self) -> tuple[int, ...]:
        """Images of each class that networks are trained on."""
        left = IMAGES_OF_CLASS[self.name]
        for key in ("test_share", "calibration_share"):
            share = getattr(self, key)
            if share and (key == "calibration_share" or self.name == "digits"):
                left = tuple(n - n_taken(key, share, label, n) for label, n in enumerate(left))
        return left


_ALIASES = ("first.pre", "first.post", "last.pre", "last.post")


class Layers(Section):
    """Layers of an architecture between image and logits, every one followed by a ReLU."""

    channels: InOrder[Width] = Field(
        (), description="Channels of each convolution, which come first: 3 x 3, stride 2, padding 1."
    )
    hidden: InOrder[Width] = Field(min_length=1, description="Units of each dense layer.")

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Names of the values on the way from image to logits, in that order."""
        layers = [f"conv{i + 1}" for i in range(len(self.channels))]
        layers += [f"hidden{i + 1}" for i in range(len(self.hidden))]
        return (*(f"{layer}.{side}" for layer in layers for side in ("pre", "post")), "logits")

    def resolve(self, name: str, architecture: str) -> str:
        """A hook point's own name: `first` and `last` replaced.

        Arguments:
            architecture: what these layers are called.
        Raises:
            ValueError: there is no such hook point.
        """
        layer, dot, side = name.partition(".")
        ends = {"first": self.hook_points[0], "last": self.hook_points[-2]}
        own = ends[layer].partition(".")[0] + dot + side if layer in ends else name
        if own not in self.hook_points:
            close = difflib.get_close_matches(name, (*self.hook_points, *_ALIASES), n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ValueError(f"'{name}': {hint}{architecture} has {', '.join(self.hook_points)}, and first.*, last.*")
        return own


ARCHITECTURES: dict[str, Layers] = {
    "FFN": Layers(hidden=(128,)),
    "SimpleNN": Layers(hidden=(64, 32)),
    "MegaNN": Layers(hidden=(512, 256, 128, 64)),
    "WideNN": Layers(hidden=(1024, 256)),
    "DeepNN": Layers(hidden=(128, 128, 64, 64, 32, 32)),
    "ConvNet": Layers(channels=(16, 32), hidden=(64,)),
}


class Role(Section):
    """A class subset on which one set of classifiers is trained."""

    classes: Each[Label] = Field(
        min_length=2, description="Labels that the classifier is trained on; its output layer keeps all classes."
    )
    seeds: Seeds | None = Field(
        None, description="One network per seed, in place of `classifiers.seeds`. Not for a role that is captured."
    )


class Classifiers(Section):
    """The networks under study: every architecture x role x seed."""

    architectures: Each[Architecture] = Field(
        ("SimpleNN", "MegaNN", "WideNN", "DeepNN", "ConvNet"),
        description="Architectures, by name: " + ", ".join(ARCHITECTURES) + ", or one of `layers`. None at all in a "
        "study of language models alone.",
    )
    layers: Annotated[dict[Architecture, Layers], Field(max_length=1000)] = Field(
        {}, description="Architectures of your own, by name."
    )
    roles: Named[Role] = Field(
        {"full": Role(classes=tuple(range(10)))}, min_length=1, description="Class subsets by role name."
    )
    seeds: Seeds = Field((0, 1, 2), min_length=1, description="One network per seed.")
    epochs: whole(1, 100_000) = Field(40, description="Passes over the training split.")
    batch_size: Rows = Field(64, description="Images per step.")
    learning_rate: Rate = Field(2e-3, description="Peak step size of Adam; decays to 0 by a cosine.")
    weight_decay: number(ge=0, le=10) = Field(1e-4, description="Decoupled weight decay.")

    def layers_of(self, architecture: str) -> Layers:
        """Layers of one of the study's architectures."""
        return (ARCHITECTURES | self.layers)[architecture]

    def seeds_of(self, role: str) -> tuple[int, ...]:
        """Seeds of a role: its own, or those of the section."""
        return self.roles[role].seeds or self.seeds

    @model_validator(mode="after")
    def _architectures_exist(self) -> Self:
        for name in self.layers:
            if name in ARCHITECTURES:
                raise ValueError(f"layers.{name}: is built in as {ARCHITECTURES[name]!r}; give yours another name")
        known = (*ARCHITECTURES, *self.layers)
        for name in self.architectures:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise ValueError(f"architectures: '{name}' is not known; {hint}known: {', '.join(known)}")
        return self


class Activations(Section):
    """What is captured from each network, and how it is stored."""

    roles: Each[Name] | None = Field(
        None, min_length=1, description="Roles whose networks are captured and get SAEs and features; all if not given."
    )

    hook_points: Each[HookPoint] = Field(
        ("last.pre",),
        min_length=1,
        description="`<layer>.pre` or `<layer>.post`, before or after the nonlinearity. `first` and `last` name the "
        "first and last hidden layer of any architecture; the layers' own names (`hidden1`, `conv1`, ...) work too.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Number type on disk.")
    chunk_rows: Rows = Field(16384, description="Activation vectors per chunk file.")
    batch_size: Rows = Field(2048, description="Images per forward pass of the capture.")
    shards: Jobs = Field(
        1,
        description="Jobs that capture one set of networks, each its own part of every store. Chunks, and all that "
        "is made from them, are the same for any number.",
    )


class Cards(Section):
    """Which SAEs get one picture per feature."""

    variants: Each[Name] = Field((), description="Variants by name; empty draws none.")
    seeds: Seeds = Field((0,), description="Classifier seeds.")


class Features(Section):
    """What is worked out for each feature."""

    top_examples: Count = Field(16, description="Highest activating images kept per feature.")
    neighbours: Count = Field(5, description="Nearest decoder rows kept per feature.")
    effect_examples: Count = Field(
        256, description="Images per feature on which the causal logit effect is measured, at most."
    )
    pattern_examples: Count = Field(
        64, description="Images per feature, at most, over which its gradient is averaged and its patterns are tested."
    )
    keep_share: Part = Field(0.1, description="Share of the pixels kept in the deletion test.")
    cards: Cards = Field(Cards(), description="One picture per feature, for these SAEs.")
