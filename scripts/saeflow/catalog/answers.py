"""What a program gets from the catalog: the JSON of each question, declared for `/openapi.json`.

A key that a question answers with and that is not declared here is an error of the tests, not of the reader.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

Instant = Annotated[
    datetime,
    PlainSerializer(datetime.isoformat, return_type=str),  # as the command line writes it
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Answer(BaseModel):
    """A JSON object with just these keys."""

    model_config = ConfigDict(extra="forbid")


class Summary(Answer):
    """Metrics that runs are compared by; null where the run is of another kind."""

    l0: float | None = Field(description="Mean number of latents that fire.")
    explained_variance: float | None
    dead_share: float | None = Field(description="Share of latents that never fired.")
    ce_recovered_zero: float | None = Field(description="Cross-entropy recovered against zero ablation; of language.")
    ce_recovered_mean: float | None = Field(description="The same against mean ablation.")
    accuracy_change_pp: float | None = Field(
        description="Change of a classifier's accuracy with the reconstruction spliced in, percentage points."
    )


class Run(Summary):
    """A run in the list."""

    name: str = Field(description="`<study>/<model>/<hook point>/<variant>`, or `<study>/injection`.")
    kind: str = Field(description="`language`, `vision` or `injection`.")
    study: str
    seed: int | None = Field(description="Of the SAE.")
    architecture: str | None = Field(description="Of the SAE.")
    d_in: int | None
    d_sae: int | None
    loaded_at: Instant


class SAE(Summary):
    """The SAE of a run."""

    architecture: str
    d_in: int
    d_sae: int
    dtype: str
    path: str = Field(description="SAE directory, below the study's folder.")
    features_path: str = Field(description="Folder of the feature tables, below the study's folder.")
    weights_sha256: str
    n_tokens: int | None
    metrics: dict[str, Any] = Field(description="All metrics by name.")


class WholeRun(Answer):
    """Everything about a run but its features and curve."""

    name: str
    kind: str
    study: str
    model: str | None
    model_revision: str | None
    hook_point: str | None
    variant: str | None
    seed: int | None
    digest: str = Field(description="sha256 over the names and bytes of the files that the run was read from.")
    config: dict[str, Any] = Field(description="What the SAE was trained with.")
    written_at: Instant | None
    loaded_at: Instant
    sae: SAE | None


class FeatureRow(Answer):
    """A feature in a list."""

    feature: int = Field(description="Number of the latent.")
    density: float = Field(description="Share of tokens or images on which it fires.")
    mean_activation: float | None = Field(description="Over those on which it fires.")
    max_activation: float | None
    interpretability: float | None = Field(description="In [0, 1].")
    label: str = Field(description="What it stands for, in words.")


class FoundFeature(FeatureRow):
    """A feature that a search found."""

    run: str
    in_label: bool = Field(description="Whether the label itself holds the words.")


class Concept(Answer):
    """A concept that a feature is among the best for."""

    concept: str
    rank: int = Field(description="1 for the feature with the highest AUROC on training sentences.")
    feature: int
    auroc_train: float
    auroc: float = Field(description="On held-out sentences.")
    selectivity: float
    null_p95: float = Field(description="95th percentile under shuffled labels.")
    control_auroc: float | None = Field(description="Best feature of an SAE with random encoder directions.")
    dense_auroc: float = Field(description="Best coordinate of the activations themselves.")
    probe_auroc: float
    passed: bool


class Context(Answer):
    """One of the strongest contexts of a feature of text."""

    feature: int
    rank: int
    document: int
    position: int = Field(description="Token of the peak, counted from the first of `tokens`.")
    context_start: int
    activation: float = Field(description="At the peak.")
    tokens: list[str]
    token_ids: list[int]
    activations: list[float] = Field(description="Of each token.")


class WholeFeature(FeatureRow):
    """One feature with its evidence, concepts and strongest contexts."""

    run: str
    dead: bool
    decoder_norm: float | None
    evidence: dict[str, Any] = Field(
        description="Of text: tokens, logits, histogram, neighbours, examples; of images: its row of the feature table."
    )
    concepts: list[Concept]
    contexts: list[Context]


class Problem(Answer):
    """Why there is no answer."""

    detail: str
