"""The sections of sparse autoencoders: variants and their training, for networks of images and of text alike."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from saeflow.config.sections import (
    Count,
    Each,
    Jobs,
    Named,
    PositiveWeight,
    Rate,
    Rows,
    Section,
    Seeds,
    Share,
    ShareBelowOne,
    Steps,
    StepsOrNone,
    Switch,
    Tokens,
    Weight,
    Width,
)


class SparseAutoencoder(Section):
    """What all SAE variants share."""

    d_sae: Width = Field(description="Number of latents.")
    dead_latents: Literal["auxk", "resample", "none"] = Field(
        "auxk",
        description="Revival of latents that stopped firing: an auxiliary loss on them, re-initialisation, or nothing.",
    )
    auxk_coefficient: Weight = Field(1 / 32, description="Weight of the AuxK loss (`dead_latents: auxk`).")
    splice_kl: Weight = Field(
        0, description="Weight of the KL divergence between the model's output and its output with x_hat spliced in."
    )


class Sparse(SparseAutoencoder):
    """An SAE whose sparsity comes from k."""

    k: Width = Field(description="Active latents per activation vector (BatchTopK: on average over a batch).")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.d_sae:
            raise ValueError(f"k: {self.k} exceeds d_sae {self.d_sae}")
        return self


class Penalised(SparseAutoencoder):
    """An SAE whose sparsity comes from a penalty: given, or calibrated to a target L0."""

    penalty: PositiveWeight | None = Field(None, description="Weight of the sparsity loss. Give this or `target_l0`.")
    target_l0: PositiveWeight | None = Field(
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
    bandwidth: PositiveWeight = Field(
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
    prefixes: Each[Width] = Field(
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


# Latents from which on the optimizer's memory matters more than the last thousandth of explained variance.
LARGE = 8192


class Training(Section):
    """How every SAE is trained."""

    steps: Steps = Field(3000, description="Optimiser steps.")
    batch_size: Rows = Field(256, description="Activation vectors per step.")
    accumulate: Count = Field(
        1,
        description="Equal parts of a batch whose gradients are worked out one after another and averaged: less memory "
        "where SAEs are stacked (the preactivations of a single one never exist whole). BatchTopK picks its latents "
        "within a part. Doubles by itself where a GPU's memory ends.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="How a CPU multiplies the matrices of a training: in `float32`, or with factors rounded to "
        "`bfloat16` and sums in float32, which needs a processor with AMX. Weights, moments and the choice "
        "of latents stay in float32. For a GPU see `compute.matmul_precision`.",
    )
    learning_rate: Rate = Field(1e-3, description="Peak step size of Adam.")
    second_moment: Literal["auto", "element", "latent"] = Field(
        "auto",
        description="What Adam keeps one for: each `element` of a matrix, or each `latent`'s row of it, in half the "
        f"memory. `auto` is `latent` for SAEs of {LARGE:,} latents or more whose sparsity is a number k, which are as "
        "good, else `element`.",
    )
    warmup_steps: StepsOrNone = Field(100, description="Steps of linear rise of the step size.")
    decay_share: Share = Field(
        0.2, description="Last share of the steps, over which the step size falls linearly to 0."
    )
    sparsity_warmup_steps: StepsOrNone = Field(500, description="Steps over which the sparsity penalty rises from 0.")
    normalize: Switch = Field(
        True, description="Centre the activations and scale them to mean squared norm d_in; folded into the saved SAE."
    )
    init: Literal["random", "data"] = Field(
        "random", description="Decoder rows at the start: random directions, or centred activation vectors."
    )
    calibration_share: ShareBelowOne = Field(
        0.0,
        description="Share of the rows, the last ones of every chunk of the store, that no SAE is trained on and on "
        "which thresholds and penalties are set to their L0; 0 sets them on rows that SAEs have seen. For stores in "
        "which neighbouring rows are of all kinds, as in text.",
    )
    dead_after: Tokens = Field(
        25_000, description="Activation vectors without firing after which a latent counts as dead."
    )
    checkpoint_steps: StepsOrNone = Field(0, description="Steps between checkpoints; 0 writes none.")

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        for name in ("warmup_steps", "sparsity_warmup_steps"):
            if getattr(self, name) > self.steps:
                raise ValueError(f"{name}: {getattr(self, name)} exceeds steps {self.steps}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} parts of a batch_size of {self.batch_size} are not equal")
        return self

    def second_moment_of(self, variant: Variant) -> Literal["element", "latent"]:
        """What `second_moment` comes to for a variant."""
        if self.second_moment != "auto":
            return self.second_moment
        return "latent" if isinstance(variant, Sparse) and variant.d_sae >= LARGE else "element"


class SAEs(Section):
    """The sparse autoencoders: every variant x seed on every store."""

    variants: Named[Variant] = Field({}, description="SAEs by name; without any, none is trained.")
    seeds: Seeds = Field((0,), min_length=1, description="SAE seeds per activation store.")
    training: Training = Field(Training(), description="Optimisation.")
    shards: Jobs = Field(
        1,
        description="Jobs that train the SAEs of one set of stores, at most; those that are trained as one stack stay "
        "together. SAEs are the same for any number.",
    )


VARIANTS: dict[str, type[SparseAutoencoder]] = {
    get_args(variant.model_fields["architecture"].annotation)[0]: variant
    for variant in (ReLU, Gated, JumpReLU, TopK, BatchTopK, MatryoshkaBatchTopK)
}
