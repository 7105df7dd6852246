"""The typed study: one YAML file, read into frozen sections that refuse unknown and contradictory keys.

Nothing heavier than pydantic is imported here: the Snakefile reads this module at every start.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Dataset = Literal["digits", "mnist", "fashion_mnist", "kmnist", "emnist_letters"]
Architecture = Literal["FFN", "SimpleNN", "MegaNN", "WideNN", "DeepNN", "ConvNet"]

N_CLASSES: dict[Dataset, int] = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "kmnist": 10, "emnist_letters": 26}


class ConfigError(ValueError):
    """A study that cannot be run; the message names each key, its value and what would be right."""


class Section(BaseModel):
    """A part of the study: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Compute(Section):
    """Where the study runs. Part of the study, because the thread count changes the last bits of a result."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="Device of every training and analysis job.")
    threads: PositiveInt = Field(1, description="CPU threads of one job. More jobs at a time beat more threads a job.")


class Data(Section):
    """The images that every classifier and analysis of the study sees."""

    name: Dataset = Field(
        "digits", description="`digits` is scikit-learn's and needs no file; the others have MNIST's layout."
    )
    data_dir: str | None = Field(
        None,
        description="Folder that holds `<Name>/raw/*-ubyte.gz` (torchvision's layout) or the files themselves, packed "
        "or not. Without it they are downloaded.",
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="Share of `digits` held out as test split, by class. The other sets bring their own split."
    )

    @model_validator(mode="after")
    def _digits_is_embedded(self) -> Self:
        if self.name == "digits" and self.data_dir is not None:
            raise ValueError(
                f"data_dir: {self.data_dir!r} is of no use to 'digits', which is embedded; drop one of the two"
            )
        return self


class Role(Section):
    """A class subset on which one set of classifiers is trained."""

    classes: tuple[NonNegativeInt, ...] = Field(
        min_length=2, description="Labels that the classifier is trained on; its output layer keeps all classes."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: {list(self.classes)} names a class twice")
        return self


def _each_once(values: tuple) -> tuple:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise PydanticCustomError("repeated", "It names {twice} twice", {"twice": ", ".join(map(str, twice))})
    return values


HookPoint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
Seeds = Annotated[tuple[NonNegativeInt, ...], AfterValidator(_each_once)]


class Classifiers(Section):
    """The networks under study: every architecture x role x seed."""

    architectures: Annotated[tuple[Architecture, ...], AfterValidator(_each_once)] = Field(
        ("SimpleNN", "MegaNN", "WideNN", "DeepNN", "ConvNet"), min_length=1, description="Architectures, by name."
    )
    roles: dict[Name, Role] = Field(
        {"full": Role(classes=tuple(range(10)))}, min_length=1, description="Class subsets by role name."
    )
    seeds: Seeds = Field((0, 1, 2), min_length=1, description="One network per seed.")
    epochs: PositiveInt = Field(40, description="Passes over the training split.")
    batch_size: PositiveInt = Field(64, description="Images per step.")
    learning_rate: PositiveFloat = Field(2e-3, description="Peak step size of Adam; decays to 0 by a cosine.")
    weight_decay: NonNegativeFloat = Field(1e-4, description="Decoupled weight decay.")


class Activations(Section):
    """What is captured from each network, and how it is stored."""

    hook_points: Annotated[tuple[HookPoint, ...], AfterValidator(_each_once)] = Field(
        ("last.pre",),
        min_length=1,
        description="`<layer>.pre` or `<layer>.post`, before or after the nonlinearity. `first` and `last` name the "
        "first and last hidden layer of any architecture; the layers' own names (`hidden1`, `conv1`, ...) work too.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Number type on disk.")
    chunk_rows: PositiveInt = Field(16384, description="Activation vectors per chunk file.")
    batch_size: PositiveInt = Field(2048, description="Images per forward pass of the capture.")


class SparseAutoencoder(Section):
    """What all SAE variants share."""

    d_sae: PositiveInt = Field(description="Number of latents.")
    dead_latents: Literal["auxk", "resample", "none"] = Field(
        "auxk",
        description="Revival of latents that stopped firing: an auxiliary loss on them, re-initialisation, or nothing.",
    )
    auxk_coefficient: NonNegativeFloat = Field(1 / 32, description="Weight of the AuxK loss (`dead_latents: auxk`).")
    splice_kl: NonNegativeFloat = Field(
        0, description="Weight of the KL divergence between the model's output and its output with x_hat spliced in."
    )


class Sparse(SparseAutoencoder):
    """An SAE whose sparsity comes from k."""

    k: PositiveInt = Field(description="Active latents per activation vector (BatchTopK: on average over a batch).")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.d_sae:
            raise ValueError(f"k: {self.k} exceeds d_sae {self.d_sae}")
        return self


class Penalised(SparseAutoencoder):
    """An SAE whose sparsity comes from a penalty: given, or calibrated to a target L0."""

    penalty: PositiveFloat | None = Field(None, description="Weight of the sparsity loss. Give this or `target_l0`.")
    target_l0: PositiveFloat | None = Field(
        None, description="Mean active latents per activation vector that the penalty is calibrated to."
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.penalty is None) == (self.target_l0 is None):
            raise ValueError("penalty, target_l0: give exactly one of them")
        if self.target_l0 is not None and self.target_l0 > self.d_sae:
            raise ValueError(f"target_l0: {self.target_l0:g} exceeds d_sae {self.d_sae}")
        return self


class ReLU(Penalised):
    """ReLU with an L1 penalty."""

    architecture: Literal["relu"] = Field(description="Selects this variant.")


class Gated(Penalised):
    """Gated SAE."""

    architecture: Literal["gated"] = Field(description="Selects this variant.")


class JumpReLU(Penalised):
    """JumpReLU with an L0 penalty."""

    architecture: Literal["jumprelu"] = Field(description="Selects this variant.")
    bandwidth: PositiveFloat = Field(
        0.5,
        description="Width of the straight-through window around a threshold, in units of the normalised activations.",
    )


class TopK(Sparse):
    """TopK."""

    architecture: Literal["topk"] = Field(description="Selects this variant.")


class BatchTopK(Sparse):
    """BatchTopK; saved with the threshold that gives the same mean L0."""

    architecture: Literal["batchtopk"] = Field(description="Selects this variant.")


class MatryoshkaBatchTopK(Sparse):
    """BatchTopK trained on nested prefixes of the latents."""

    architecture: Literal["matryoshka"] = Field(description="Selects this variant.")
    prefixes: tuple[PositiveInt, ...] = Field(
        min_length=1, description="Sizes of the nested dictionaries, ascending; the last one is d_sae."
    )

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[-1] != self.d_sae:
            raise ValueError(f"prefixes: {list(self.prefixes)} must ascend and end with d_sae {self.d_sae}")
        return self


Variant = Annotated[
    ReLU | Gated | JumpReLU | TopK | BatchTopK | MatryoshkaBatchTopK, Field(discriminator="architecture")
]


class Training(Section):
    """How every SAE is trained."""

    steps: PositiveInt = Field(3000, description="Optimiser steps.")
    batch_size: PositiveInt = Field(256, description="Activation vectors per step.")
    learning_rate: PositiveFloat = Field(1e-3, description="Peak step size of Adam.")
    warmup_steps: NonNegativeInt = Field(100, description="Steps of linear rise of the step size.")
    decay_share: Share = Field(
        0.2, description="Last share of the steps, over which the step size falls linearly to 0."
    )
    sparsity_warmup_steps: NonNegativeInt = Field(
        500, description="Steps over which the sparsity penalty rises from 0."
    )
    normalize: bool = Field(
        True, description="Centre the activations and scale them to mean squared norm d_in; folded into the saved SAE."
    )
    init: Literal["random", "data"] = Field(
        "random", description="Decoder rows at the start: random directions, or centred activation vectors."
    )
    dead_after: PositiveInt = Field(
        25_000, description="Activation vectors without firing after which a latent counts as dead."
    )
    checkpoint_steps: NonNegativeInt = Field(0, description="Steps between checkpoints; 0 writes none.")

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        for name in ("warmup_steps", "sparsity_warmup_steps"):
            if getattr(self, name) > self.steps:
                raise ValueError(f"{name}: {getattr(self, name)} exceeds steps {self.steps}")
        return self


class SAEs(Section):
    """The sparse autoencoders: every variant x seed on every store."""

    variants: dict[Name, Variant] = Field(min_length=1, description="SAEs by name.")
    seeds: Seeds = Field((0,), min_length=1, description="SAE seeds per activation store.")
    training: Training = Field(Training(), description="Optimisation.")


class Cards(Section):
    """Which SAEs get one picture per feature."""

    variants: tuple[Name, ...] = Field((), description="Variants by name; empty draws none.")
    seeds: Seeds = Field((0,), description="Classifier seeds.")


class Features(Section):
    """What is worked out for each feature."""

    top_examples: PositiveInt = Field(16, description="Highest activating images kept per feature.")
    neighbours: PositiveInt = Field(5, description="Nearest decoder rows kept per feature.")
    effect_examples: PositiveInt = Field(
        256, description="Images per feature on which the causal logit effect is measured, at most."
    )
    pattern_examples: PositiveInt = Field(
        64, description="Images per feature, at most, over which its gradient is averaged and its patterns are tested."
    )
    keep_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the pixels kept in the deletion test."
    )
    cards: Cards = Field(Cards(), description="One picture per feature, for these SAEs.")


class Tolerances(Section):
    """How far tables built on another class of machine may be from ours."""

    rtol: NonNegativeFloat = Field(1e-3, description="Relative tolerance of a number in a table.")
    atol: NonNegativeFloat = Field(1e-6, description="Absolute tolerance of a number in a table.")


class Study(Section):
    """One study: everything that it shows is built under `results/<study>/`."""

    study: Name = Field(description="Name of the study and of its folder under `results/`.")
    seed: NonNegativeInt = Field(0, description="Root of every random draw; child seeds are derived from names.")
    reference: str | None = Field(
        None,
        description="What `verify` compares with: a `MANIFEST.sha256` (exact) or a study's folder (tables, within "
        "`verify`'s tolerances).",
    )
    verify: Tolerances = Field(Tolerances(), description="Tolerances of `verify` against a folder.")
    compute: Compute = Field(Compute(), description="Device and threads.")
    dataset: Data = Field(Data(), description="Images.")
    classifiers: Classifiers = Field(Classifiers(), description="Networks.")
    activations: Activations = Field(Activations(), description="Capture.")
    saes: SAEs = Field(description="Sparse autoencoders.")
    features: Features = Field(Features(), description="Feature analysis.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        n_classes = N_CLASSES[self.dataset.name]
        for name, role in self.classifiers.roles.items():
            strangers = [label for label in role.classes if label >= n_classes]
            if strangers:
                raise ValueError(
                    f"classifiers.roles.{name}.classes: {strangers} not in dataset.name {self.dataset.name}, "
                    f"whose labels are 0 to {n_classes - 1}"
                )
        for name in self.features.cards.variants:
            if name not in self.saes.variants:
                raise ValueError(
                    f"features.cards.variants: '{name}' is not in saes.variants ({', '.join(self.saes.variants)})"
                )
        for seed in self.features.cards.seeds:
            if seed not in self.classifiers.seeds:
                raise ValueError(
                    f"features.cards.seeds: {seed} is not in classifiers.seeds {list(self.classifiers.seeds)}"
                )
        return self


VARIANTS: dict[str, type[SparseAutoencoder]] = {
    get_args(variant.model_fields["architecture"].annotation)[0]: variant
    for variant in (ReLU, Gated, JumpReLU, TopK, BatchTopK, MatryoshkaBatchTopK)
}


def parse(config: Mapping[str, Any]) -> Study:
    """Study of a mapping.

    Raises:
        ConfigError: a line per mistake, each naming the key, its value and what would be right.
    """
    try:
        return Study.model_validate(config)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


def load(path: Path | str) -> Study:
    """Study of a YAML file; raises ConfigError as `parse` does."""
    with open(path) as file:
        return parse(yaml.safe_load(file) or {})


def _explain(problem: Mapping[str, Any]) -> str:
    """One mistake in words."""
    section, keys = _locate(problem["loc"])
    name, message = ".".join(keys), problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
            known = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(section.model_fields)}"
            return f"{name}: {problem['input']!r} under an unknown key; {known}"
        case "missing":
            return f"{name}: missing, and it has no default"
        case "union_tag_invalid" | "union_tag_not_found":
            found = problem["input"].get("architecture")
            return f"{name}.architecture: {found!r} is none of {', '.join(VARIANTS)}"
        case "value_error":
            return f"{name}.{message}" if name else message
    return f"{name}: {problem['input']!r} is not right: {message[0].lower()}{message[1:]}"


def _locate(location: tuple[str | int, ...]) -> tuple[type[Section], list[str]]:
    """The section that a mistake's last key stands in, and its keys as the file has them."""
    section: type[Section] = Study
    keys: list[str] = []
    here: Any = Study
    for step in location:
        section = here if isinstance(here, type) and issubclass(here, Section) else section
        if keys and keys[-2:-1] == ["variants"] and step in VARIANTS:
            here = VARIANTS[step]  # pydantic puts a union's tag into the path; the file has no such key
            continue
        keys.append(str(step))
        field = section.model_fields.get(step) if here is section else None
        here = field.annotation if field else (get_args(here) or (None,))[-1]
    return section, keys
