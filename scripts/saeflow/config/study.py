"""The typed study: one YAML file, read into frozen sections that refuse unknown and contradictory keys."""

from typing import Literal, Self

from pydantic import Field, model_validator

from saeflow.config.geometry import Geometry
from saeflow.config.images import (
    Activations,
    Classifiers,
    Data,
    Features,
)
from saeflow.config.injection import Injection
from saeflow.config.inversion import Inversion
from saeflow.config.language import Language
from saeflow.config.saes import (
    SAEs,
)
from saeflow.config.sections import (
    Name,
    PathToRead,
    Section,
    Seed,
    Share,
    whole,
)


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
