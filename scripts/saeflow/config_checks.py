"""What the sections of a study must agree on, beyond what each checks by itself: all of it known from the study alone.

A check is a function that gives a line for each mistake; it is on the list by its decorator. What depends on files,
models and packages of this machine is in `saeflow.preflight`.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from saeflow.config_language import no_such_module

if TYPE_CHECKING:
    from saeflow.config import Study

Check = Callable[["Study"], Iterator[str]]
_CHECKS: list[Check] = []


def _check(check: Check) -> Check:
    _CHECKS.append(check)
    return check


def problems(study: "Study") -> list[str]:
    """A line per mistake: the key, its value and what would be right."""
    return [line for check in _CHECKS for line in check(study)]


@_check
def _hook_points_of_classifiers(study: "Study") -> Iterator[str]:
    for architecture in study.classifiers.architectures:
        layers = study.classifiers.layers_of(architecture)
        for name in study.activations.hook_points:
            try:
                layers.resolve(name, architecture)
            except ValueError as error:
                yield f"activations.hook_points: {error}"


@_check
def _hook_points_of_embedded_models(study: "Study") -> Iterator[str]:
    for name, model in (study.language.models if study.language else {}).items():
        if model.embedded:
            for hook in model.hook_points:
                known = model.embedded.modules(hook.side)
                if hook.module not in known:
                    yield f"language.models.{name}.hook_points: {no_such_module(hook.module, known)}"


@_check
def _steered_module_of_embedded_models(study: "Study") -> Iterator[str]:
    inner = study.geometry.interventions.inner if study.geometry and study.geometry.hierarchical else None
    for name in _measured(study) if inner else ():
        embedded = study.language.models[name].embedded
        if embedded and inner not in embedded.modules("output"):
            said = no_such_module(inner, embedded.modules("output"))
            yield f"geometry.interventions.inner: {said} (language.models.{name})"


@_check
def _sizes_of_embedded_models(study: "Study") -> Iterator[str]:
    for name, model in (study.language.models if study.language else {}).items():
        if model.embedded is None:
            continue
        key, words, width = f"language.models.{name}.embedded", model.embedded.vocabulary, model.embedded.width
        if study.language.saes.variants and study.language.features.logits > words:
            yield f"language.features.logits: {study.language.features.logits} exceeds {key}.vocabulary {words}"
        if name not in _measured(study):
            continue
        if words <= width:
            yield (
                f"{key}.vocabulary: {words} words do not determine geometry's covariance of width {width}; "
                "give more words than that"
            )
        if study.geometry.hierarchical and study.geometry.hierarchical.rank > width:
            yield f"geometry.hierarchical.rank: {study.geometry.hierarchical.rank} exceeds {key}.width {width}"


@_check
def _labelled_contexts_are_of_the_text(study: "Study") -> Iterator[str]:
    if not (study.geometry and study.geometry.hierarchical and study.language):
        return
    asked, text = study.geometry.contexts, study.language.text
    # Text is taken until a context is full.
    if asked.select + asked.test > text.held_out_tokens + text.context_size:
        yield (
            f"geometry.contexts: select {asked.select} and test {asked.test} exceed language.text.held_out_tokens "
            f"{text.held_out_tokens}; a token is one context at most"
        )
    if not study.geometry.concepts.prompts and asked.train > text.train_tokens + text.context_size:
        yield (
            f"geometry.contexts.train: {asked.train} exceeds language.text.train_tokens {text.train_tokens}; a token "
            "is one context at most"
        )


@_check
def _inversion_fits_into_contexts(study: "Study") -> Iterator[str]:
    if not (study.inversion and study.language):
        return
    size, stages = study.language.text.context_size, study.inversion.pipeline
    window, length = study.inversion.explanation.window, study.inversion.optimization.length
    if stages.explain and window >= size:
        yield (
            f"inversion.explanation.window: {window} tokens and the start token do not fit into "
            f"language.text.context_size {size}"
        )
    if stages.optimize and length >= size and any(model.embedded for model in study.language.models.values()):
        yield (
            f"inversion.optimization.length: {length} tokens and the start token exceed what an embedded model reads, "
            f"language.text.context_size {size}"
        )


@_check
def _few_shots_are_there(study: "Study") -> Iterator[str]:
    if study.injection and "references" in study.injection.methods:
        n = study.dataset.training_images[study.injection.concept]
        for shots in study.injection.few_shots:
            if shots > n:
                yield f"injection.few_shots: {shots} exceeds the {n} training images of class {study.injection.concept}"


@_check
def _target_l0_is_some_latent(study: "Study") -> Iterator[str]:
    of_images = sum(study.dataset.training_images)
    of_text = study.language.text.train_tokens + study.language.text.context_size if study.language else 0
    for key, saes, rows in _saes(study, of_images, of_text):
        for name, variant in saes.variants.items():
            target = getattr(variant, "target_l0", None)
            if target is not None and round(target * rows) < 1:
                yield f"{key}.variants.{name}.target_l0: {target:g} asks for no active latent on {rows} rows"


@_check
def _precision_of_the_device(study: "Study") -> Iterator[str]:
    sections = [(f"{key}.training", saes.training) for key, saes, _ in _saes(study, 0, 0)]
    if study.injection:
        sections.append(("injection.concept_spaces.training", study.injection.concept_spaces.training))
    for key, training in sections:
        if training.precision == "bfloat16" and study.compute.device == "cuda":
            yield (
                f"{key}.precision: 'bfloat16' is for a CPU, but compute.device is 'cuda'; drop it, and set "
                "compute.matmul_precision to 'tf32'"
            )


def _saes(study: "Study", of_images: int, of_text: int) -> Iterator[tuple[str, "object", int]]:
    yield "saes", study.saes, of_images
    if study.language:
        yield "language.saes", study.language.saes, of_text


def _measured(study: "Study") -> tuple[str, ...]:
    """Models whose geometry is measured."""
    if not (study.geometry and study.language):
        return ()
    return study.geometry.models or tuple(study.language.models)
