"""What the sections of a study must agree on, beyond what each checks by itself: all of it known from the study alone.

A check is a function that gives a line for each mistake; it is on its list by its decorator. First come the checks of
names, by which one section speaks of another's entries; the others may rely on them. What depends on files, models and
packages of this machine is in `saeflow.preflight`.
"""

from collections.abc import Callable, Iterable, Iterator

from saeflow.config.images import N_CLASSES
from saeflow.config.language import no_such_module
from saeflow.config.saes import SAEs
from saeflow.config.study import Study

Check = Callable[[Study], Iterator[str]]
_OF_NAMES: list[Check] = []
_OF_AGREEMENT: list[Check] = []


def _names(check: Check) -> Check:
    _OF_NAMES.append(check)
    return check


def _check(check: Check) -> Check:
    _OF_AGREEMENT.append(check)
    return check


def of_names(study: Study) -> list[str]:
    """A line per name that stands for nothing: the key, the name and those that are known."""
    return [line for check in _OF_NAMES for line in check(study)]


def of_agreement(study: Study) -> list[str]:
    """A line per contradiction between sections: the key, its value and what would be right."""
    return [line for check in _OF_AGREEMENT for line in check(study)]


def _unknown(key: str, names: Iterable[str], section: str, known: Iterable[str]) -> Iterator[str]:
    known = list(known)
    for name in names:
        if name not in known:
            yield f"{key}: '{name}' is not in {section} ({', '.join(known) or 'not given'})"


@_names
def _architectures_are_there(study: Study) -> Iterator[str]:
    if study.classifiers.architectures:
        return
    idle = [name for name, used in (("injection", study.injection), ("saes.variants", study.saes.variants)) if used]
    if study.language is None or idle:
        why = f"{idle[0]} needs some" if idle else "only a study with `language` can do without"
        yield f"classifiers.architectures: none given, but {why}"


@_names
def _captured_roles(study: Study) -> Iterator[str]:
    yield from _unknown(
        "activations.roles", study.activations.roles or (), "classifiers.roles", study.classifiers.roles
    )


@_names
def _cards(study: Study) -> Iterator[str]:
    cards = study.features.cards
    yield from _unknown("features.cards.variants", cards.variants, "saes.variants", study.saes.variants)
    for seed in cards.seeds:
        if seed not in study.classifiers.seeds:
            yield f"features.cards.seeds: {seed} is not in classifiers.seeds {list(study.classifiers.seeds)}"


@_names
def _roles_of_injection(study: Study) -> Iterator[str]:
    for key in ("target", "source", "blind") if study.injection else ():
        if name := getattr(study.injection, key):
            yield from _unknown(f"injection.{key}", [name], "classifiers.roles", study.classifiers.roles)


@_names
def _architectures_of_injection(study: Study) -> Iterator[str]:
    named = dict.fromkeys(name for pair in (study.injection and study.injection.pairs) or () for name in pair)
    yield from _unknown("injection.pairs", named, "classifiers.architectures", study.classifiers.architectures)


@_names
def _models_of_geometry(study: Study) -> Iterator[str]:
    if not study.geometry:
        return
    known = study.language.models if study.language else {}
    yield from _unknown("geometry.models", study.geometry.models or (), "language.models", known)
    if not (known or study.geometry.models):
        yield "geometry: measures language models; name one in language.models"


@_names
def _saes_of_inversion(study: Study) -> Iterator[str]:
    if study.inversion and not (study.language and study.language.saes.variants):
        yield "inversion: is of SAEs of language models; give language.saes.variants, or drop it"


@_names
def _classes_of_roles(study: Study) -> Iterator[str]:
    n_classes = N_CLASSES[study.dataset.name]
    for name, role in study.classifiers.roles.items():
        if strangers := [label for label in role.classes if label >= n_classes]:
            yield (
                f"classifiers.roles.{name}.classes: {strangers} not in dataset.name {study.dataset.name}, "
                f"whose labels are 0 to {n_classes - 1}"
            )


@_check
def _seeds_of_captured_roles(study: Study) -> Iterator[str]:
    for name in study.captured_roles:
        if study.classifiers.roles[name].seeds is not None:
            yield (
                f"classifiers.roles.{name}.seeds: a captured role takes classifiers.seeds; drop the key, or leave "
                f"'{name}' out of activations.roles"
            )


@_check
def _concept_of_injection(study: Study) -> Iterator[str]:
    if not study.injection:
        return
    injection, roles = study.injection, study.classifiers.roles
    target, source = roles[injection.target].classes, roles[injection.source].classes
    for key in ("concept", "lookalike"):
        label = getattr(injection, key)
        if label not in source or label in target:
            yield (
                f"injection.{key}: {label} must be one of the source's classes {list(source)} and none of the target's "
                f"{list(target)}"
            )
    if injection.concept == injection.lookalike:
        yield f"injection.lookalike: {injection.lookalike} is the concept itself"
    if not set(source) & set(target):
        yield (
            f"injection.source: its classes {list(source)} share none with the target's {list(target)}; the methods "
            "align both networks on shared classes"
        )
    if injection.blind is not None and injection.concept in roles[injection.blind].classes:
        yield f"injection.blind: '{injection.blind}' is trained on the concept, {injection.concept}"


@_check
def _sequence_of_injection(study: Study) -> Iterator[str]:
    if not study.injection:
        return
    injection, roles = study.injection, study.classifiers.roles
    target = roles[injection.target].classes
    for label, name in injection.sequence.items():
        if name not in roles or label not in roles[name].classes or label in (*target, injection.concept):
            yield (
                f"injection.sequence.{label}: '{name}' must be a role that knows class {label}, which must be neither "
                f"the concept nor one of the target's classes {list(target)}; roles: {', '.join(roles)}"
            )


@_check
def _seeds_of_injection(study: Study) -> Iterator[str]:
    if not study.injection:
        return
    injection, known = study.injection, study.classifiers
    named = (injection.target, injection.source, injection.blind, *injection.sequence.values())
    seeds = {name: list(known.seeds_of(name)) for name in named if name in known.roles}
    if len(set(map(len, seeds.values()))) > 1:
        yield f"injection: networks are paired by seed, but the roles have seeds {seeds}"


@_check
def _images_to_calibrate_on(study: Study) -> Iterator[str]:
    if study.injection and not study.dataset.calibration_share:
        yield "dataset.calibration_share: 0, but injection calibrates thresholds on such images; try 0.1"


@_check
def _hook_points_of_classifiers(study: Study) -> Iterator[str]:
    for architecture in study.classifiers.architectures:
        layers = study.classifiers.layers_of(architecture)
        for name in study.activations.hook_points:
            try:
                layers.resolve(name, architecture)
            except ValueError as error:
                yield f"activations.hook_points: {error}"


@_check
def _hook_points_of_embedded_models(study: Study) -> Iterator[str]:
    for name, model in (study.language.models if study.language else {}).items():
        if model.embedded:
            for hook in model.hook_points:
                known = model.embedded.modules(hook.side)
                if hook.module not in known:
                    yield f"language.models.{name}.hook_points: {no_such_module(hook.module, known)}"


@_check
def _steered_module_of_embedded_models(study: Study) -> Iterator[str]:
    inner = study.geometry.interventions.inner if study.geometry and study.geometry.hierarchical else None
    for name in _measured(study) if inner else ():
        embedded = study.language.models[name].embedded
        if embedded and inner not in embedded.modules("output"):
            said = no_such_module(inner, embedded.modules("output"))
            yield f"geometry.interventions.inner: {said} (language.models.{name})"


@_check
def _sizes_of_embedded_models(study: Study) -> Iterator[str]:
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
def _labelled_contexts_are_of_the_text(study: Study) -> Iterator[str]:
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
def _inversion_fits_into_contexts(study: Study) -> Iterator[str]:
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
def _few_shots_are_there(study: Study) -> Iterator[str]:
    injection = study.injection
    known = injection and injection.concept in study.classifiers.roles[injection.source].classes
    if known and "references" in injection.methods:
        n = study.dataset.training_images[injection.concept]
        for shots in injection.few_shots:
            if shots > n:
                yield f"injection.few_shots: {shots} exceeds the {n} training images of class {injection.concept}"


@_check
def _target_l0_is_some_latent(study: Study) -> Iterator[str]:
    of_images = sum(study.dataset.training_images)
    of_text = study.language.text.train_tokens + study.language.text.context_size if study.language else 0
    for key, saes, rows in _saes(study, of_images, of_text):
        for name, variant in saes.variants.items():
            target = getattr(variant, "target_l0", None)
            if target is not None and round(target * rows) < 1:
                yield f"{key}.variants.{name}.target_l0: {target:g} asks for no active latent on {rows} rows"


@_check
def _precision_of_the_device(study: Study) -> Iterator[str]:
    sections = [(f"{key}.training", saes.training) for key, saes, _ in _saes(study, 0, 0)]
    if study.injection:
        sections.append(("injection.concept_spaces.training", study.injection.concept_spaces.training))
    for key, training in sections:
        if training.precision == "bfloat16" and study.compute.device == "cuda":
            yield (
                f"{key}.precision: 'bfloat16' is for a CPU, but compute.device is 'cuda'; drop it, and set "
                "compute.matmul_precision to 'tf32'"
            )


def _saes(study: Study, of_images: int, of_text: int) -> Iterator[tuple[str, SAEs, int]]:
    yield "saes", study.saes, of_images
    if study.language:
        yield "language.saes", study.language.saes, of_text


def _measured(study: Study) -> tuple[str, ...]:
    """Models whose geometry is measured."""
    if not (study.geometry and study.language):
        return ()
    return study.geometry.models or tuple(study.language.models)
