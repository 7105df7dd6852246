"""The section of language models: which models, on which text, captured where, with which SAEs."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from saeflow.config.publish import Concepts, Publish
from saeflow.config.saes import SAEs
from saeflow.config.sections import (
    Count,
    CountOrNone,
    Each,
    HookPoint,
    Jobs,
    Line,
    Named,
    PathToRead,
    Rate,
    Right,
    Rows,
    Section,
    Steps,
    StepsOrNone,
    Switch,
    Tokens,
    Width,
    number,
    whole,
    written,
)

# A name on the Hugging Face hub: owner and repository, or a repository alone; no dot in front of either.
HubId = written(
    "a name on the hub, as owner/name", r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$", 128
)
HubName = written(
    "letters, digits, _, ., / and -, with a letter, digit or _ first", r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$", 128
)
DType = Literal["float32", "float16", "bfloat16"]


class Hook(Section):
    """Where activations are captured: the output of a module, or what goes into it."""

    module: HookPoint = Field(description="Path of the module as `named_modules` has it, e.g. `model.layers.2`.")
    side: Literal["input", "output"] = Field("output", description="Which side of the module.")

    @property
    def name(self) -> str:
        """Name of the hook point and of its folder: the module's path, with `.input` behind it for its input."""
        return self.module if self.side == "output" else f"{self.module}.input"

    def __str__(self) -> str:
        return self.name


def _as_hook(value: Any) -> Any:
    return {"module": value} if isinstance(value, str) else value


HookOrPath = Annotated[
    Hook,
    BeforeValidator(_as_hook, json_schema_input_type=HookPoint | Hook),
    Right("the path of a module, or `{module: <path>, side: input}`"),
]


SPECIAL_TOKENS = ("<unk>", "<s>")
"""Of an embedded model's vocabulary: for words that it lacks, and for the start of a document."""


class EmbeddedModel(Section):
    """A Llama-style model of words that the study trains itself, on the study's text."""

    width: Width = Field(64, description="Width of the residual stream.")
    layers: whole(1, 1000) = Field(2, description="Blocks.")
    heads: whole(1, 1000) = Field(4, description="Attention heads; they divide the width.")
    mlp_width: Width = Field(172, description="Width inside the MLP.")
    vocabulary: whole(len(SPECIAL_TOKENS) + 1, 10**6) = Field(
        4096, description="Words of the vocabulary, the most frequent, at most; two of them are special tokens."
    )
    steps: Steps = Field(1200, description="Optimiser steps.")
    batch_size: Rows = Field(32, description="Contexts per step.")
    learning_rate: Rate = Field(5e-3, description="Peak step size of AdamW; decays to a tenth by a cosine.")
    warmup_steps: StepsOrNone = Field(50, description="Steps of linear rise of the step size.")
    weight_decay: number(ge=1e-12, le=10) = Field(0.1, description="Decoupled weight decay of the matrices.")
    lm_head_std: number(ge=1e-12, le=10) = Field(
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

    def modules(self, side: str) -> tuple[str, ...]:
        """Paths of its modules that take or give a vector per token.

        Arguments:
            side: `input` or `output`.
        """
        attention = ["self_attn", *(f"self_attn.{name}_proj" for name in "qkvo")]
        mlp = ["mlp", *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))]
        inside = ["", *(f".{name}" for name in (*attention, *mlp, "input_layernorm", "post_attention_layernorm"))]
        blocks = [f"model.layers.{i}{name}" for i in range(self.layers) for name in inside]
        return (*(["model", "model.embed_tokens"] if side == "output" else []), *blocks, "model.norm", "lm_head")


def no_such_module(path: str, modules: Iterable[str]) -> str:
    """What to say of a module that a model does not have: the nearest that it has."""
    modules = list(modules)
    close = difflib.get_close_matches(path, modules, n=5, cutoff=0.4)
    # A path that is right but for its last step says most by what is beside it.
    parent = path.rpartition(".")[0]
    beside = [name for name in modules if parent and name.rpartition(".")[0] == parent][:5]
    nearest = list(dict.fromkeys([*close, *beside])) or modules[:7]
    return f"'{path}': the model has no such module; nearest: {', '.join(nearest)}"


class LanguageModel(Section):
    """A causal language model: exactly one of `embedded`, `id` and `folder`."""

    embedded: EmbeddedModel | None = Field(None, description="Trained by the study; `{}` takes the defaults.")
    id: HubId | None = Field(None, description="Name on the Hugging Face hub; needs `revision`.")
    revision: HubName | None = Field(
        None, description="Commit, tag or branch of `id`; only a commit stays what it is, and is what results name."
    )
    folder: PathToRead | None = Field(None, description="Folder with `config.json`, weights (safetensors), tokenizer.")
    hook_points: Each[HookOrPath] = Field(
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
    trust_remote_code: Switch = Field(
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


# A line that stands between documents.
Separator = written(
    'a line that can be seen, or "\\n" (a document per line), or "\\n\\n" (empty lines divide)',
    r"^(\n{1,2}|[^\x00-\x1f\ufeff]*[^\s\x00-\x1f\ufeff][^\x00-\x1f\ufeff]*)$",
    64,
)


class Text(Section):
    """What the models read: the embedded corpus, or one of `folder` and `dataset`."""

    folder: PathToRead | None = Field(None, description="Folder with `.txt` or `.parquet` files, read in their order.")
    dataset: HubId | None = Field(None, description="Data set on the Hugging Face hub; needs `revision`.")
    revision: HubName | None = Field(None, description="Commit, tag or branch of `dataset`.")
    subset: HubName | None = Field(None, description="Configuration of `dataset`, if it has several.")
    split: HubName = Field("train", description="Split of `dataset`.")
    column: Line = Field("text", description="Column of `dataset`, or of Parquet files, that holds the text.")
    streaming: Switch = Field(True, description="Take the first documents of `dataset` without a download of the rest.")
    separator: Separator = Field(
        "<|endoftext|>",
        description="The line that stands between the documents of a `.txt` file; without it a file is one. "
        '`"\\n"` makes each line a document, `"\\n\\n"` divides at empty lines.',
    )
    hierarchy: PathToRead | None = Field(
        None, description="Nouns that the embedded corpus is made from, if not `config/concepts/hierarchy.yaml`."
    )
    documents: Tokens = Field(12_000, description="Documents of the embedded corpus, of about 100 words each.")
    context_size: whole(2, 2**20) = Field(64, description="Tokens of a context, the start token in front among them.")
    train_tokens: Tokens = Field(200_000, description="Tokens whose activations SAEs are trained on.")
    held_out_tokens: Tokens = Field(40_000, description="Tokens, of documents apart, on which SAEs are evaluated.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.folder is not None and self.dataset is not None:
            raise ValueError("folder, dataset: give one of them, or neither for the embedded corpus")
        if (self.dataset is None) != (self.revision is None):
            raise ValueError("revision: goes with `dataset`, and `dataset` with it")
        if self.hierarchy is not None and (self.folder or self.dataset):
            raise ValueError("hierarchy: is of the embedded corpus; drop it, or `folder` and `dataset`")
        return self

    @property
    def held_out_share(self) -> float:
        """Share of the tokens, and of the documents, that is held out."""
        return self.held_out_tokens / (self.train_tokens + self.held_out_tokens)


class LanguageActivations(Section):
    """How activations of text are stored."""

    dtype: DType = Field("float32", description="Number type on disk.")
    chunk_rows: Rows = Field(16384, description="Activation vectors per chunk file.")
    batch_size: Rows = Field(64, description="Contexts per forward pass.")
    shards: Jobs = Field(
        1,
        description="Jobs that capture one model, each its own part of every store; the same chunks for any number.",
    )


class LanguageFeatures(Section):
    """What is worked out for each feature of text, for the SAEs of the first seed."""

    top_contexts: Count = Field(20, description="Contexts with the highest activations kept per feature.")
    tokens_before: CountOrNone = Field(24, description="Tokens shown before the peak, at most.")
    tokens_after: CountOrNone = Field(8, description="Tokens shown after the peak, at most.")
    bins: Count = Field(40, description="Bins of the histogram of activations.")
    logits: Count = Field(10, description="Tokens promoted and suppressed most, kept per feature.")
    neighbours: Count = Field(10, description="Features kept that fire together with a feature.")
    memory_mb: whole(1, 2**24) = Field(256, description="Memory for counts of features that fire together, in MiB.")


class Language(Section):
    """Language models, their text, activations, SAEs and features."""

    models: Named[LanguageModel] = Field(min_length=1, description="Models by name.")
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
