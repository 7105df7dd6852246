"""The section of geometry: which concepts, how they are measured, and which hierarchical SAEs are trained on them."""

import string
from typing import Literal, Self

from pydantic import Field, model_validator

from saeflow.config.sections import (
    Count,
    CountOrNone,
    Dose,
    Each,
    HookPoint,
    Line,
    Name,
    Named,
    Part,
    PathToRead,
    Rate,
    Rows,
    Section,
    Seeds,
    Share,
    ShareBelowOne,
    Steps,
    StepsOrNone,
    Switch,
    Weight,
    whole,
    written,
)

FEWEST_WORDS = 3
"""Words behind a concept vector, at least."""
Synset = written("a noun of WordNet as animal.n.01", r"^[a-z0-9_'./-]+\.n\.\d\d$", 96)
TEMPLATES = (
    "A {word} is a {concept}. Another {concept} is the",
    "They saw a {word}, a {word2} and a",
    "Many a {concept} such as a {word}, a {word2} or a",
    "She had a {word} and he had a",
)


def _holds_words_alone(template: str) -> bool:
    """Whether nothing but the words of a prompt stands in braces: a width takes memory, a dot leads into Python."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return False
    words = (None, "concept", "word", "word2", "word3", "word4")
    return all(name in words and not width and not conversion for _, name, width, conversion in parts)


class Concepts(Section):
    """Hierarchies of concepts and the words that stand for them: those that are one token of a model."""

    source: Literal["file", "wordnet"] = Field(
        "file", description="A file of nouns, or WordNet through NLTK, found by the environment variable NLTK_DATA."
    )
    file: PathToRead | None = Field(
        None, description="`parent: {child: {words, says}}`, if not `config/concepts/hierarchy.yaml`."
    )
    synsets: Each[Synset] | None = Field(
        None,
        min_length=2,
        description="Parents from WordNet, such as `animal.n.01`; without it the lowest synsets that have enough "
        "children with enough words.",
    )
    senses: Count = Field(1, description="Senses of a word that count, the most frequent ones (WordNet).")
    min_noun_share: Share = Field(
        0.5, description="Least share of nouns among a word's occurrences in WordNet's tagged texts."
    )
    all_forms: Switch = Field(False, description="Take a noun's capitalised and plural forms as well.")
    min_words: whole(6, 1000) = Field(6, description="Nouns that a child must keep.")
    min_children: whole(2, 1000) = Field(2, description="Children that a parent must keep.")
    held_out_share: Part = Field(0.3, description="Share of each child's nouns that no concept vector is fitted on.")
    templates: Each[Line] = Field(
        TEMPLATES, min_length=1, description="Prompts: {concept} is a parent, {word} to {word4} nouns of one child."
    )
    prompts: CountOrNone = Field(64, description="Prompts of each parent.")

    @model_validator(mode="after")
    def _of_one_source(self) -> Self:
        if self.source == "file" and self.synsets:
            raise ValueError("synsets: is of `source: wordnet`; drop it, or the source")
        if self.source == "wordnet" and self.file:
            raise ValueError("file: is of `source: file`; drop it, or the source")
        for template in self.templates:
            if not _holds_words_alone(template):
                raise ValueError(
                    f"templates: {template!r} may hold {{concept}}, {{word}}, {{word2}}, {{word3}} and {{word4}} alone"
                )
        left = self.min_words - round(self.held_out_share * self.min_words)
        if left < FEWEST_WORDS:
            raise ValueError(
                f"held_out_share: {self.held_out_share:g} leaves {left} of the {self.min_words} nouns that a child "
                f"may have (min_words); a concept vector needs {FEWEST_WORDS}"
            )
        return self


class Measures(Section):
    """How the hierarchy is looked for in the unembedding."""

    eigenvalue_floor: Part = Field(
        1e-6, description="Least eigenvalue of the unembedding's covariance, as a share of the largest."
    )
    splits: Count = Field(5, description="Halvings of the words behind a crossfit angle.")
    bootstrap: Count = Field(1000, description="Resamples of parents behind an interval.")


class LabelledText(Section):
    """Contexts in which the model is about to name a concept, and others."""

    train: Rows = Field(24_576, description="Contexts that hierarchical SAEs are trained on.")
    select: Rows = Field(4096, description="Contexts on which latents are matched to concepts.")
    test: Rows = Field(4096, description="Contexts on which they are measured.")
    mass: Part = Field(0.5, description="Probability on a parent's words from which on a context has its label.")
    concept_share: Share = Field(0.5, description="Share of contexts with a label, if the text has as many.")
    batch_size: Rows = Field(64, description="Texts per forward pass.")


class Interventions(Section):
    """What adding concept vectors does."""

    contexts: Count = Field(64, description="Contexts without a label in which vectors are added.")
    logits: Dose = Field(4.0, description="Step: the rise in logit of the vector's own words.")
    doses: Each[Dose] = Field((1.0, 2.0, 4.0, 8.0), description="Steps of the dose-response curves.")
    inner: HookPoint | None = Field(
        None,
        description="Module after which vectors are added as well, e.g. `model.layers.0`; the first of the "
        "model's hook points if not given.",
    )


class Arm(Section):
    """A way to start and train a hierarchical SAE."""

    start: Literal["random", "teacher", "shuffled_teacher", "activation_teacher"] = Field(
        "random",
        description="First parents and children: random, concept vectors, those of shuffled unembedding rows, or means "
        "of labelled contexts.",
    )
    frozen_share: ShareBelowOne = Field(
        0.0, description="Share of the shortest training in which the decoder is kept as it starts (stage A)."
    )
    k: Count = Field(1, description="Active parents per context; a flat SAE has twice as many latents active.")
    flat: Switch = Field(False, description="A TopK SAE with as many latents as parents and children together.")
    space: Literal["causal", "euclidean"] = Field("causal", description="Coordinates: whitened, or one scale for all.")

    @model_validator(mode="after")
    def _flat_has_no_teacher(self) -> Self:
        if self.flat and self.start != "random":
            raise ValueError(f"start: '{self.start}' gives children, but the SAE is flat; drop one of the two")
        return self


ARMS = {
    "baseline": Arm(),
    "baseline_scheduled": Arm(frozen_share=0.2),
    "teacher": Arm(start="teacher", frozen_share=0.2),
    "teacher_unfrozen": Arm(start="teacher"),
    "shuffled_teacher": Arm(start="shuffled_teacher", frozen_share=0.2),
    "activation_teacher": Arm(start="activation_teacher", frozen_share=0.2),
    "flat": Arm(flat=True),
    "euclidean_baseline": Arm(space="euclidean", frozen_share=0.2),
    "euclidean_teacher": Arm(start="teacher", space="euclidean", frozen_share=0.2),
    "baseline_k2": Arm(k=2, frozen_share=0.2),
    "teacher_k2": Arm(start="teacher", k=2, frozen_share=0.2),
    "flat_k2": Arm(flat=True, k=2),
}
SCHEDULED, TEACHER, SHUFFLED = "baseline_scheduled", "teacher", "shuffled_teacher"
"""Arms that the verdict compares."""


class HierarchicalSAEs(Section):
    """Hierarchical SAEs on labelled contexts: every arm x seed, measured along one training."""

    arms: Named[Arm] = Field(
        ARMS,
        min_length=1,
        description="Arms by name; the verdict compares " + ", ".join((TEACHER, SCHEDULED, SHUFFLED)) + ".",
    )
    seeds: Seeds = Field((0, 1, 2), min_length=1, description="SAEs of each arm.")
    parents: Count = Field(64, description="Parent latents.")
    children: Count = Field(8, description="Child latents of each parent.")
    rank: Count = Field(8, description="Dimensions of a parent's subspace.")
    steps: Each[Steps] = Field(
        (300, 1000, 3000), min_length=1, description="Optimiser steps after which each arm is measured, ascending."
    )
    budget: Steps = Field(1000, description="One of `steps`: where the verdict compares arms.")
    batch_size: Rows = Field(1024, description="Contexts per step.")
    learning_rate: Rate = Field(
        5e-4,
        description="Step size of Adam after warm-up; the authors' by default, at which a random start is slow.",
    )
    warmup_steps: StepsOrNone = Field(50, description="Steps of linear rise of the step size.")
    top_weight: Weight = Field(0.1, description="Weight of the parents' own reconstruction loss.")
    sparsity_weight: Weight = Field(1e-3, description="Weight of the L1 norm of the codes.")
    biorthogonality_weight: Weight = Field(
        0.1, description="Weight of products of encoder rows with other parents' decoder rows."
    )
    causal_weight: Weight = Field(
        0.1, description="Weight of products of encoder rows with the directions that their children read."
    )
    checkpoint_steps: StepsOrNone = Field(0, description="Steps between checkpoints; 0 writes none.")

    @model_validator(mode="after")
    def _steps_ascend(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps: {list(self.steps)} must ascend")
        if self.budget not in self.steps:
            raise ValueError(f"budget: {self.budget} is not in steps {list(self.steps)}")
        if self.rank > self.children * 8:
            raise ValueError(f"rank: {self.rank} exceeds 8 times children {self.children}")
        if self.warmup_steps > self.steps[-1]:
            raise ValueError(f"warmup_steps: {self.warmup_steps} exceeds the last of steps, {self.steps[-1]}")
        return self

    @property
    def latents(self) -> dict[str, int | None]:
        """Concepts that the SAEs can stand for: parents, and children of one where a teacher gives them."""
        taught = any(arm.start != "random" for arm in self.arms.values())
        return {"parents": self.parents, "children": self.children if taught else None}

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        for name, arm in self.arms.items():
            k, latents = (2 * arm.k, self.parents * (1 + self.children)) if arm.flat else (arm.k, self.parents)
            if k > latents:
                raise ValueError(f"arms.{name}.k: {arm.k} asks for {k} active of {latents} latents")
        return self


class Geometry(Section):
    """Polytopes of concepts in the unembedding, and hierarchical SAEs that start from them."""

    models: Each[Name] | None = Field(
        None, min_length=1, description="Models of `language.models` that are measured; all if not given."
    )
    concepts: Concepts = Field(Concepts(), description="Concepts and their words.")
    measures: Measures = Field(Measures(), description="Phase 1.")
    contexts: LabelledText = Field(LabelledText(), description="What SAEs are trained and measured on.")
    interventions: Interventions = Field(Interventions(), description="Steering with concept vectors.")
    hierarchical: HierarchicalSAEs | None = Field(
        HierarchicalSAEs(), description="Hierarchical SAEs, phases 2 to 4; null for phase 1 alone."
    )
