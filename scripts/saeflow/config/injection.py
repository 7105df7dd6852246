"""The section of concept injection: whose concept goes where, by which methods."""

import difflib
from typing import Self

from pydantic import Field, model_validator

from saeflow.config.saes import Training
from saeflow.config.sections import (
    Architecture,
    Count,
    CountOrNone,
    Each,
    Label,
    LabelAsKey,
    Name,
    Part,
    Rows,
    Section,
    Steps,
    Width,
)

METHODS: dict[str, str] = {
    "references": "references",
    "ridge_regression": "regression",
    "relative_representations": "relative_representations",
    "dreamt_images": "dreamt_images",
    "whole_model_distillation": "whole_model_distillation",
    "precomputed_alignment": "concept_spaces",
    "neural_aligner": "neural_aligner",
    "dimension_scaling": "concept_spaces",
    "sparsity_optimisation": "concept_spaces",
    "hierarchical_transfer": "hierarchical_transfer",
    "several_concepts": "several_concepts",
    "adversarial_direction": "adversarial_direction",
    "architecture_agnostic": "architecture_agnostic",
    "continual_injection": "continual_injection",
    "direct_weight_copy": "weight_selection",
    "procrustes_probe": "procrustes_probe",
    "importance_selection": "weight_selection",
    "gradual_blending": "weight_selection",
    "pathway_transplant": "pathways",
    "activation_selection": "weight_selection",
    "cascade_transplant": "pathways",
    "basic_sae_injection": "sae_injection",
    "preserved_injection": "sae_injection",
    "vector_space_aligned": "vector_transfer",
    "cross_architecture_vector": "vector_transfer",
    "aligned_spatial_transfer": "aligned_spatial_transfer",
    "doodle_regression": "regression",
    "fragment_distillation": "distillation",
}
"""Injection methods, and the module of `saeflow.injection.methods` that each is in."""

SAE_METHODS = {
    "precomputed_alignment",
    "dimension_scaling",
    "sparsity_optimisation",
    "basic_sae_injection",
    "preserved_injection",
}
"""Methods that read the study's concept SAEs; the others need not wait for them."""


class ConceptSpaces(Section):
    """The sparse autoencoders whose latents the SAE methods read concepts from; one per network."""

    d_sae: Width = Field(128, description="Number of latents.")
    k: Width = Field(8, description="Active latents per activation vector, on average over a batch.")
    training: Training = Field(
        Training(steps=500, batch_size=128, learning_rate=3e-3, warmup_steps=50, sparsity_warmup_steps=0),
        description="Optimisation.",
    )
    sizes: Each[Width] = Field((32, 64, 128, 256), description="`d_sae` of the sweep of dimensions.")
    sparsities: Each[Width] = Field((2, 4, 8, 16, 32), description="`k` of the sweep of sparsities.")
    sweep_architectures: CountOrNone = Field(
        2, description="Both sweeps run among the first so many of the study's architectures."
    )

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.d_sae:
            raise ValueError(f"k: {self.k} exceeds d_sae {self.d_sae}")
        if self.sweep_architectures and min(self.sizes, default=self.k) < self.k:
            raise ValueError(f"sizes: {min(self.sizes)} is below k {self.k}; sweep sizes of {self.k} and more")
        if self.sweep_architectures and max(self.sparsities, default=1) > self.d_sae:
            raise ValueError(f"sparsities: {max(self.sparsities)} exceeds d_sae {self.d_sae}")
        return self


class Distillation(Section):
    """The head of `fragment_distillation`."""

    hidden: Width = Field(256, description="Units of the head.")
    steps: Steps = Field(420, description="Steps of optimisation.")
    batch_size: Rows = Field(256, description="Images per step.")
    fragments: Count = Field(48_000, description="Synthetic images: warped parts of the target's own classes.")
    own_images: Count = Field(6000, description="Images of the target's own classes, at most.")
    own_share: Part = Field(0.25, description="Their share of each batch.")


class Injection(Section):
    """A concept that target networks never saw, given to them from source networks that know it."""

    target: Name = Field("target", description="Role of the networks that get the concept.")
    source: Name = Field("source", description="Role of the networks that know it.")
    blind: Name | None = Field(
        "blind", description="Role like `source` but without the concept, for a control; null leaves the control out."
    )
    concept: Label = Field(description="Class that is injected: one of the source's, none of the target's.")
    lookalike: Label = Field(
        description="Class on which specificity is measured: one of the source's, none of the target's."
    )
    sequence: dict[LabelAsKey, Name] = Field(
        {},
        description="What continual injection adds after the concept: classes in this order, each with the role of the "
        "networks that know it.",
    )
    pairs: Each[tuple[Architecture, Architecture]] | None = Field(
        None, min_length=1, description="[source, target] architectures; all ordered pairs if not given."
    )
    methods: Each[Name] = Field(tuple(METHODS), min_length=1, description="Methods, by name.")
    preservation: Part = Field(
        0.985,
        description="Share of the calibration images of the target's own classes that an injected network does not "
        "answer with the concept; fixes the shift of the concept's logit.",
    )
    synthetic_images: Count = Field(12_000, description="Doodles, for the methods that use synthetic inputs.")
    few_shots: Each[Count] = Field((1, 5, 20, 100), description="Labelled images of the few-shot rows.")
    concept_spaces: ConceptSpaces = Field(ConceptSpaces(), description="SAEs of the SAE methods.")
    distillation: Distillation = Field(Distillation(), description="The new method's head.")
    bootstrap: Count = Field(1000, description="Resamples of seeds and images behind a confidence interval.")

    @model_validator(mode="after")
    def _methods_exist(self) -> Self:
        for name in self.methods:
            if name not in METHODS:
                close = difflib.get_close_matches(name, METHODS, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise ValueError(f"methods: '{name}' is not known; {hint}known: {', '.join(METHODS)}")
        return self
