"""The section of inverse embeddings: which features are asked about, how inputs are searched for and explained."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from saeflow.config.sections import (
    Count,
    CountOrNone,
    Dose,
    Line,
    Rows,
    Section,
    Share,
    Steps,
    Switch,
    Tokens,
    whole,
    written,
)
from saeflow.endpoints import URL, VARIABLE

WINDOWS_SCORED = 8
"""Windows of the data, per feature and length of a text, that a search scores before it starts."""


class Hardware(Section):
    """How much goes through the model at once; device and threads are those of `compute`."""

    batch_size: Rows = Field(256, description="Prompts per forward pass; a quarter of it per backward pass.")


class Collection(Section):
    """Which features are worth asking about."""

    prompt_tokens: Count = Field(32, description="Tokens of a prompt: a piece of a document inside a context.")
    most_prompts: Count = Field(2048, description="Prompts by which features are clustered, about.")
    entropy: tuple[Share, Share] = Field(
        (0.2, 0.9), description="Least and greatest entropy of a feature over prompts, by the log of their number."
    )
    density: tuple[Share, Share] = Field((5e-4, 0.1), description="Least and greatest share of tokens it fires on.")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for name in ("entropy", "density"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name}: {low:g} must be below {high:g}")
        return self


class Clustering(Section):
    """How features are grouped."""

    method: Literal["hdbscan", "umap_dbscan"] = Field(
        "hdbscan", description="On principal components; or UMAP and DBSCAN, which needs the extra `umap`."
    )
    by: Literal["activity", "decoder"] = Field(
        "activity", description="What chosen features stand for: clusters of prompts they share, or of decoder rows."
    )
    components: Count = Field(32, description="Principal components, at most.")
    min_size: whole(2, 1_000_000) = Field(5, description="Fewest features of a cluster.")
    neighbours: Count = Field(5, description="Of UMAP, and of the curve that DBSCAN's eps is read from.")
    seeds: CountOrNone = Field(5, description="Draws of half of the data, over which stability is measured.")
    features: Count = Field(20, description="Features that are chosen.")


class Optimization(Section):
    """How inputs are searched for."""

    length: Count = Field(
        16, description="Tokens of a found text, at most: fewer for features that fire at the start of a text alone."
    )
    position: Literal["last", "any"] | CountOrNone = Field(
        "last", description="Where the feature is to fire: last token, any, or a place counted from 0."
    )
    restarts: Count = Field(8, description="Starts per feature, half from the best windows of the text.")
    evaluations: Steps = Field(
        10_000, description="Forward passes per feature and method, at most; a backward pass counts as two."
    )
    width: Count = Field(16, description="Candidates per iteration of a restart of GCG or a member of EPO.")
    top_k: Count = Field(128, description="Tokens per place that a gradient proposes.")
    population: Count = Field(8, description="Members of EPO's population, each with its weight of fluency.")
    epo_start: Literal["dataset", "gcg"] = Field(
        "gcg",
        description="What EPO starts from; from GCG's texts it cannot end below them, and what GCG spent is added.",
    )
    soft_steps: Steps = Field(50, description="Steps of soft prompts, at most.")
    soft_rate: Dose = Field(0.1, description="Length of such a step, in mean norms of an embedding.")
    soft_constraint: Literal["norm", "distribution", "simplex"] = Field(
        "norm", description="What soft prompts stay inside of: the longest embedding, the spread of all, their hull."
    )

    @model_validator(mode="after")
    def _position_fits(self) -> Self:
        if isinstance(self.position, int) and self.position >= self.length:
            raise ValueError(f"position: {self.position} is outside a text of {self.length} tokens")
        return self

    @model_validator(mode="after")
    def _evaluations_outlast_the_starts(self) -> Self:
        lengths = 1 if isinstance(self.position, int) else self.length.bit_length()
        first = WINDOWS_SCORED * lengths + self.restarts
        if self.evaluations <= first:
            raise ValueError(
                f"evaluations: {self.evaluations} may all go into the choice of length and starts, which takes up to "
                f"{first}; give more"
            )
        return self


class Explainer(Section):
    """A language model that explains, behind an OpenAI-compatible endpoint. It makes results depend on a service."""

    url: written("an address that starts with https:// or http://, without a user", URL, 1024) = Field(
        description="Up to and without `/chat/completions`; https, or http on the same machine. Asked only if the "
        f"environment variable {VARIABLE} allows its host."
    )
    model: Line = Field(description="Name of the model there.")

    @model_validator(mode="before")
    @classmethod
    def _names_no_key(cls, value: Any) -> Any:
        if isinstance(value, dict) and "key_variable" in value:
            raise ValueError(
                f"key_variable: no file says which key is sent; drop it, and set {VARIABLE}=https://host=NAME in your "
                "environment"
            )
        return value


class Explanation(Section):
    """How features are explained, and explanations tested."""

    most_tokens: Count = Field(100, description="Tokens that a rule names at each of its four places, at most.")
    most_text: Tokens = Field(500_000, description="Tokens of training text that rules are made from, at most.")
    window: whole(2, 2**20) = Field(32, description="Tokens of a window of a test.")
    examples: whole(2, 1_000_000) = Field(50, description="Windows that fire, and as many that do not.")
    quantiles: Count = Field(10, description="Quantiles of activation that windows come from evenly.")
    endpoint: Explainer | None = Field(None, description="A language model beside the rule; none if not given.")


class Output(Section):
    """What is drawn."""

    interactive_map: Switch = Field(True, description="A page with the map of features, which shows each on hover.")


class Pipeline(Section):
    """Which stages run; clusters always do, since they choose the features."""

    optimize: Switch = Field(True, description="Search for inputs.")
    explain: Switch = Field(True, description="Explain and test.")
    visualize: Switch = Field(True, description="Draw.")


class Inversion(Section):
    """Inverse embeddings: what drives a feature of a language model most, and what it means."""

    hardware: Hardware = Field(Hardware(), description="Batches.")
    data: Collection = Field(Collection(), description="Collection and filters.")
    clustering: Clustering = Field(Clustering(), description="Clusters and choice.")
    optimization: Optimization = Field(Optimization(), description="Search for inputs.")
    explanation: Explanation = Field(Explanation(), description="Explanations and their scores.")
    output: Output = Field(Output(), description="Figures.")
    pipeline: Pipeline = Field(Pipeline(), description="Stages.")
