"""The typed study: one YAML file, read into frozen sections that refuse unknown and contradictory keys.

Nothing heavier than pydantic is imported here: the Snakefile reads this module at every start.

`python -m saeflow.config STUDY` prints the name of a study that can be run, or what is wrong with it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from saeflow import config_checks, strict_yaml
from saeflow.config_geometry import Geometry
from saeflow.config_images import (
    ARCHITECTURES,
    N_CLASSES,
    Activations,
    Cards,
    Classifiers,
    Data,
    Dataset,
    Features,
    Layers,
    Role,
)
from saeflow.config_injection import METHODS, SAE_METHODS, ConceptSpaces, Distillation, Injection
from saeflow.config_inversion import Inversion
from saeflow.config_language import Language
from saeflow.config_messages import explain, limited, shown
from saeflow.config_saes import (
    VARIANTS,
    BatchTopK,
    Gated,
    JumpReLU,
    MatryoshkaBatchTopK,
    Penalised,
    ReLU,
    SAEs,
    Sparse,
    SparseAutoencoder,
    TopK,
    Training,
    Variant,
)
from saeflow.config_sections import (
    Architecture,
    ConfigError,
    HookPoint,
    Name,
    PathToRead,
    Section,
    Seed,
    Seeds,
    Share,
    whole,
)
from saeflow.config_size import check_size
from saeflow.redaction import has_password, is_secret_name
from saeflow.strict_yaml import DEEPEST

# Sections of modules beside this one, under the one name that the library knows them by.
__all__ = [
    "ARCHITECTURES",
    "METHODS",
    "N_CLASSES",
    "SAE_METHODS",
    "VARIANTS",
    "Activations",
    "Architecture",
    "BatchTopK",
    "Cards",
    "Classifiers",
    "ConceptSpaces",
    "ConfigError",
    "Data",
    "Dataset",
    "Distillation",
    "Features",
    "Gated",
    "HookPoint",
    "Injection",
    "Inversion",
    "JumpReLU",
    "Language",
    "Layers",
    "MatryoshkaBatchTopK",
    "Name",
    "Penalised",
    "ReLU",
    "Role",
    "SAEs",
    "Section",
    "Seed",
    "Seeds",
    "Share",
    "Sparse",
    "SparseAutoencoder",
    "TopK",
    "Training",
    "Variant",
]


class Compute(Section):
    """Where the study runs. Part of the study, because the thread count changes the last bits of a result."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="Device of every training and analysis job.")
    threads: whole(1, 1024) = Field(
        1, description="CPU threads of one job. More jobs at a time beat more threads a job."
    )
    matmul_precision: Literal["float32", "tf32"] = Field(
        "float32",
        description="How a GPU multiplies float32 matrices: in `float32`, or in `tf32`, which is faster and rounds "
        "each factor to 10 bits of mantissa.",
    )

    @model_validator(mode="after")
    def _tf32_is_of_a_gpu(self) -> Self:
        if self.matmul_precision == "tf32" and self.device == "cpu":
            raise ValueError("matmul_precision: 'tf32' needs a GPU, but device is 'cpu'; drop one of the two")
        return self


class Tolerances(Section):
    """How far tables built on another class of machine may be from ours."""

    rtol: Share = Field(1e-3, description="Relative tolerance of a number in a table.")
    atol: Share = Field(1e-6, description="Absolute tolerance of a number in a table.")


class Study(Section):
    """One study: everything that it shows is built under `results/<study>/`."""

    study: Name = Field(description="Name of the study and of its folder under `results/`.")
    seed: Seed = Field(0, description="Root of every random draw; child seeds are derived from names.")
    reference: PathToRead | None = Field(
        None,
        description="What `verify` compares with: a `MANIFEST.sha256` (exact) or a study's folder (tables, within "
        "`verify`'s tolerances).",
    )
    verify: Tolerances = Field(Tolerances(), description="Tolerances of `verify` against a folder.")
    compute: Compute = Field(Compute(), description="Device and threads.")
    dataset: Data = Field(Data(), description="Images.")
    classifiers: Classifiers = Field(Classifiers(), description="Networks.")
    activations: Activations = Field(Activations(), description="Capture.")
    saes: SAEs = Field(SAEs(), description="Sparse autoencoders.")
    features: Features = Field(Features(), description="Feature analysis.")
    injection: Injection | None = Field(None, description="Concept injection; none if not given.")
    language: Language | None = Field(None, description="Language models; none if not given.")
    geometry: Geometry | None = Field(None, description="Geometry of concepts in language models; none if not given.")
    inversion: Inversion | None = Field(None, description="Inverse embeddings of their features; none if not given.")

    @property
    def captured_roles(self) -> tuple[str, ...]:
        """Roles whose networks get activation stores, SAEs and features."""
        roles = tuple(self.classifiers.roles) if self.activations.roles is None else self.activations.roles
        return roles if self.saes.variants else ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.classifiers.architectures:
            idle = [
                name for name, used in (("injection", self.injection), ("saes.variants", self.saes.variants)) if used
            ]
            if self.language is None or idle:
                why = f"{idle[0]} needs some" if idle else "only a study with `language` can do without"
                raise ValueError(f"classifiers.architectures: none given, but {why}")
        n_classes = N_CLASSES[self.dataset.name]
        for name, role in self.classifiers.roles.items():
            strangers = [label for label in role.classes if label >= n_classes]
            if strangers:
                raise ValueError(
                    f"classifiers.roles.{name}.classes: {strangers} not in dataset.name {self.dataset.name}, "
                    f"whose labels are 0 to {n_classes - 1}"
                )
        for name in self.activations.roles or ():
            if name not in self.classifiers.roles:
                raise ValueError(
                    f"activations.roles: '{name}' is not in classifiers.roles ({', '.join(self.classifiers.roles)})"
                )
        for name in self.captured_roles:
            if self.classifiers.roles[name].seeds is not None:
                raise ValueError(
                    f"classifiers.roles.{name}.seeds: a captured role takes classifiers.seeds; drop the key, or leave "
                    f"'{name}' out of activations.roles"
                )
        if self.injection:
            _check_injection(self.injection, self)
        if self.geometry:
            _check_geometry(self.geometry, self)
        if self.inversion and not (self.language and self.language.saes.variants):
            raise ValueError("inversion: is of SAEs of language models; give language.saes.variants, or drop it")
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

    @model_validator(mode="after")
    def _can_be_planned(self) -> Self:
        check_size(self)
        return self


def _check_injection(injection: Injection, study: Study) -> None:
    """The roles fit one another and the concept."""
    roles, known = study.classifiers.roles, ", ".join(study.classifiers.roles)
    for key in ("target", "source", "blind"):
        name = getattr(injection, key)
        if name is not None and name not in roles:
            raise ValueError(f"injection.{key}: '{name}' is not in classifiers.roles ({known})")
    target, source = roles[injection.target].classes, roles[injection.source].classes
    for key in ("concept", "lookalike"):
        label = getattr(injection, key)
        if label not in source or label in target:
            raise ValueError(
                f"injection.{key}: {label} must be one of the source's classes {list(source)} and none of the target's "
                f"{list(target)}"
            )
    if injection.concept == injection.lookalike:
        raise ValueError(f"injection.lookalike: {injection.lookalike} is the concept itself")
    if not set(source) & set(target):
        raise ValueError(
            f"injection.source: its classes {list(source)} share none with the target's {list(target)}; the methods "
            "align both networks on shared classes"
        )
    if injection.blind is not None and injection.concept in roles[injection.blind].classes:
        raise ValueError(f"injection.blind: '{injection.blind}' is trained on the concept, {injection.concept}")
    for label, name in injection.sequence.items():
        if name not in roles or label not in roles[name].classes or label in (*target, injection.concept):
            raise ValueError(
                f"injection.sequence.{label}: '{name}' must be a role that knows class {label}, which must be neither "
                f"the concept nor one of the target's classes {list(target)}; roles: {known}"
            )
    used = [
        name for name in (injection.target, injection.source, injection.blind, *injection.sequence.values()) if name
    ]
    seeds = {name: list(study.classifiers.seeds_of(name)) for name in used}
    if len(set(map(len, seeds.values()))) > 1:
        raise ValueError(f"injection: networks are paired by seed, but the roles have seeds {seeds}")
    for pair in injection.pairs or ():
        for name in pair:
            if name not in study.classifiers.architectures:
                raise ValueError(
                    f"injection.pairs: '{name}' is not in classifiers.architectures "
                    f"({', '.join(study.classifiers.architectures)})"
                )
    if not study.dataset.calibration_share:
        raise ValueError("dataset.calibration_share: 0, but injection calibrates thresholds on such images; try 0.1")


def _check_geometry(geometry: Geometry, study: Study) -> None:
    """Its models are the study's."""
    known = tuple(study.language.models) if study.language else ()
    for name in geometry.models or ():
        if name not in known:
            raise ValueError(f"geometry.models: '{name}' is not in language.models ({', '.join(known) or 'not given'})")
    if not known:
        raise ValueError("geometry: measures language models; name one in language.models")


def parse(config: Mapping[str, Any]) -> Study:
    """Study of a mapping.

    Raises:
        ConfigError: a line per mistake, each naming the key, its value and what would be right.
    """
    if secrets := list(_secrets(config, "")):
        raise ConfigError(limited(secrets))
    try:
        study = Study.model_validate(config)
    except ValidationError as error:
        raise ConfigError(explain(error, Study)) from None
    if problems := config_checks.problems(study):
        raise ConfigError("\n".join(problems))
    return study


def load(path: Path | str) -> Study:
    """Study of a YAML file; raises ConfigError as `parse` does, and where the file cannot be read."""
    return parse(read(path))


def read(*paths: Path | str, over: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What files say, and `over` them the command line: sections are merged, and of two values the last counts.

    Raises:
        ConfigError: a file that is no YAML, holds no keys, or has one twice.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            content = strict_yaml.read(path)
        except strict_yaml.YAMLFileError as error:
            raise ConfigError(str(error)) from None
        if content is None:
            raise ConfigError(f"{path}: is empty; a study has at least `study: <name>`")
        if not isinstance(content, Mapping):
            raise ConfigError(f"{path}: holds {shown(content)}; a study is made of keys, as `study: <name>`")
        merged = _merged(merged, content)
    return _merged(
        merged, {key: _typed(value) if isinstance(value, dict | list) else value for key, value in over.items()}
    )


def check_command_line(words: Sequence[str]) -> None:
    """Refuse a key that `--config` of Snakemake's command line gives twice, of which it would keep the last.

    Raises:
        ConfigError: names the key.
    """
    given, seen = False, set()
    for word in words:
        if word.startswith("-"):
            given = word in ("--config", "-C") or word.startswith("--config=")
        key, is_setting, value = word.removeprefix("--config=").partition("=")
        if not (given and is_setting):
            continue
        if key in seen:
            raise ConfigError(f"--config: {key} is given twice; keep one of them")
        seen.add(key)
        if value.startswith(("{", "[")):
            try:
                strict_yaml.parse(value, f"--config {key}")
            except strict_yaml.YAMLFileError as error:
                raise ConfigError(str(error)) from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _typed(value: Any) -> Any:
    """Content of `--config`, in which Snakemake leaves all that stands in brackets text."""
    if isinstance(value, Mapping):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_typed(inner) for inner in value]
    try:
        return strict_yaml.scalar(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ConfigError(f"--config: {error}") from None


def _secrets(value: Any, key: str) -> Iterator[str]:
    """A line for each secret of a study, which is published with its results; none shows the secret."""
    if key.count(".") > DEEPEST:
        yield f"{key[:80]}…: more than {DEEPEST} lists and sections inside of one another"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, f"{key}.{name}".lstrip("."))
    elif is_secret_name(key.rpartition(".")[2]):
        yield f"{key}: a secret has no place in a study; drop the key, and set the environment variable of its library"
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _secrets(inner, f"{key}.{i}")
    elif isinstance(value, str) and has_password(value):
        yield f"{key}: a URL with a password has no place in a study; keep the URL in an environment variable"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m saeflow.config STUDY")
    try:
        sys.stdout.write(load(sys.argv[1]).study + "\n")
    except ConfigError as error:
        sys.exit(f"The study cannot be run as it is written:\n{error}")


if __name__ == "__main__":
    main()
