"""The section of language models: which models, on which text, captured where, with which SAEs."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from saeflow.config_publish import Concepts, Publish
from saeflow.config_saes import SAEs
from saeflow.config_sections import HookPoint, Name, PathToRead, Section

# A name on the Hugging Face hub: owner and repository, or a repository alone; no dot in front of either.
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$", max_length=128)]
HubName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$", max_length=128)]
DType = Literal["float32", "float16", "bfloat16"]


class Hook(Section):
    """Where activations are captured: the output of a module, or what goes into it."""

    module: HookPoint = Field(description="Path of the module as `named_modules` has it, e.g. `model.layers.2`.")
    side: Literal["input", "output"] = Field("output", description="Which side of the module.")

    @property
    def name(self) -> str:
        """Name of the hook point and of its folder: the module's path, with `.input` behind it for its input."""
        return self.module if self.side == "output" else f"{self.module}.input"


def _as_hook(value: Any) -> Any:
    return {"module": value} if isinstance(value, str) else value


HookOrPath = Annotated[Hook, BeforeValidator(_as_hook, json_schema_input_type=HookPoint | Hook)]


class EmbeddedModel(Section):
    """A Llama-style model of words that the study trains itself, on the study's text."""

    width: PositiveInt = Field(64, description="Width of the residual stream.")
    layers: PositiveInt = Field(2, description="Blocks.")
    heads: PositiveInt = Field(4, description="Attention heads; they divide the width.")
    mlp_width: PositiveInt = Field(172, description="Width inside the MLP.")
    vocabulary: PositiveInt = Field(4096, description="Words of the vocabulary, the most frequent, at most.")
    steps: PositiveInt = Field(1200, description="Optimiser steps.")
    batch_size: PositiveInt = Field(32, description="Contexts per step.")
    learning_rate: PositiveFloat = Field(5e-3, description="Peak step size of AdamW; decays to a tenth by a cosine.")
    warmup_steps: NonNegativeInt = Field(50, description="Steps of linear rise of the step size.")
    weight_decay: PositiveFloat = Field(0.1, description="Decoupled weight decay of the matrices.")
    lm_head_std: PositiveFloat = Field(
        0.002,
        description="Standard deviation of the unembedding at the start. At 0.02 its noise would dominate the whitened "
        "space of the unembedding.",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"heads: {self.heads} must divide width {self.width} into heads of an even width")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} exceeds steps {self.steps}")
        return self


class LanguageModel(Section):
    """A causal language model: exactly one of `embedded`, `id` and `folder`."""

    embedded: EmbeddedModel | None = Field(None, description="Trained by the study; `{}` takes the defaults.")
    id: HubId | None = Field(None, description="Name on the Hugging Face hub; needs `revision`.")
    revision: HubName | None = Field(
        None, description="Commit, tag or branch of `id`; only a commit stays what it is, and is what results name."
    )
    folder: PathToRead | None = Field(None, description="Folder with `config.json`, weights (safetensors), tokenizer.")
    hook_points: tuple[HookOrPath, ...] = Field(
        min_length=1,
        description="Where activations are captured, all in one pass: module paths, whose output is taken, or "
        "`{module: ..., side: input}`.",
    )
    dtype: DType = Field("float32", description="Number type that the model is loaded in.")
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None,
        description="Attention implementation of transformers; it chooses (`sdpa`, else `eager`) if none is named, "
        "and where a model has no `sdpa`.",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None, description="How accelerate spreads the model over devices; without it, all is on `compute.device`."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that lies beside the model. It can do whatever you can: read it before."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("embedded", "id", "folder") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"embedded, id, folder: give exactly one of them, not {', '.join(given) or 'none'}")
        if (self.id is None) != (self.revision is None):
            raise ValueError("revision: goes with `id`, and `id` with it: name a commit of the model, or a tag")
        names = [hook.name for hook in self.hook_points]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"hook_points: {', '.join(twice)} would be captured twice")
        return self

    @property
    def hooks(self) -> dict[str, Hook]:
        """Hook points by name."""
        return {hook.name: hook for hook in self.hook_points}


class Text(Section):
    """What the models read: the embedded corpus, or one of `folder` and `dataset`."""

    folder: PathToRead | None = Field(None, description="Folder with `.txt` or `.parquet` files, read in their order.")
    dataset: HubId | None = Field(None, description="Data set on the Hugging Face hub; needs `revision`.")
    revision: HubName | None = Field(None, description="Commit, tag or branch of `dataset`.")
    subset: HubName | None = Field(None, description="Configuration of `dataset`, if it has several.")
    split: HubName = Field("train", description="Split of `dataset`.")
    column: HubName = Field("text", description="Column of `dataset`, or of Parquet files, that holds the text.")
    streaming: bool = Field(True, description="Take the first documents of `dataset` without a download of the rest.")
    separator: Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$", max_length=64)] = Field(
        "<|endoftext|>", description="What stands between the documents of a `.txt` file; without it a file is one."
    )
    hierarchy: PathToRead | None = Field(
        None, description="Nouns that the embedded corpus is made from, if not `config/concepts/hierarchy.yaml`."
    )
    documents: PositiveInt = Field(12_000, description="Documents of the embedded corpus, of about 100 words each.")
    context_size: Annotated[int, Field(ge=2)] = Field(
        64, description="Tokens of a context, the start token in front among them."
    )
    train_tokens: PositiveInt = Field(200_000, description="Tokens whose activations SAEs are trained on.")
    held_out_tokens: PositiveInt = Field(40_000, description="Tokens, of documents apart, on which SAEs are evaluated.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.folder is not None and self.dataset is not None:
            raise ValueError("folder, dataset: give one of them, or neither for the embedded corpus")
        if (self.dataset is None) != (self.revision is None):
            raise ValueError("revision: goes with `dataset`, and `dataset` with it")
        if self.hierarchy is not None and (self.folder or self.dataset):
            raise ValueError("hierarchy: is of the embedded corpus; drop it, or `folder` and `dataset`")
        return self


class LanguageActivations(Section):
    """How activations of text are stored."""

    dtype: DType = Field("float32", description="Number type on disk.")
    chunk_rows: PositiveInt = Field(16384, description="Activation vectors per chunk file.")
    batch_size: PositiveInt = Field(64, description="Contexts per forward pass.")
    shards: PositiveInt = Field(
        1,
        description="Jobs that capture one model, each its own part of every store; the same chunks for any number.",
    )


class LanguageFeatures(Section):
    """What is worked out for each feature of text, for the SAEs of the first seed."""

    top_contexts: PositiveInt = Field(20, description="Contexts with the highest activations kept per feature.")
    tokens_before: NonNegativeInt = Field(24, description="Tokens shown before the peak, at most.")
    tokens_after: NonNegativeInt = Field(8, description="Tokens shown after the peak, at most.")
    bins: PositiveInt = Field(40, description="Bins of the histogram of activations.")
    logits: PositiveInt = Field(10, description="Tokens promoted and suppressed most, kept per feature.")
    neighbours: PositiveInt = Field(10, description="Features kept that fire together with a feature.")
    memory_mb: PositiveInt = Field(256, description="Memory for counts of features that fire together, in MiB.")


class Language(Section):
    """Language models, their text, activations, SAEs and features."""

    models: dict[Name, LanguageModel] = Field(min_length=1, description="Models by name.")
    text: Text = Field(Text(), description="What they read.")
    activations: LanguageActivations = Field(LanguageActivations(), description="Capture.")
    saes: SAEs = Field(SAEs(), description="SAEs of every hook point, as `saes` has them.")
    features: LanguageFeatures = Field(LanguageFeatures(), description="Feature analysis.")
    concepts: Concepts = Field(Concepts(), description="Concept tests.")
    publish: Publish = Field(Publish(), description="Packages.")

    @model_validator(mode="after")
    def _reads_text(self) -> Self:
        for name, variant in self.saes.variants.items():
            if variant.splice_kl:
                raise ValueError(f"saes.variants.{name}.splice_kl: is of classifiers; drop it for language models")
        for name in self.publish.variants or ():
            if name not in self.saes.variants:
                raise ValueError(
                    f"publish.variants: '{name}' is not in saes.variants ({', '.join(self.saes.variants)})"
                )
        for name in self.publish.model_ids:
            if name not in self.models:
                raise ValueError(f"publish.model_ids: '{name}' is not in models ({', '.join(self.models)})")
        return self
