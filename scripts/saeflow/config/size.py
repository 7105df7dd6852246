"""How large a study may be: as many networks, SAEs and parts of stores as Snakemake plans in about a minute.

Planning takes more than linear time: 1,000 SAEs took 45 s, 3,000 eight minutes (one core, Snakemake 9.27).
"""

import math
from collections.abc import Iterator

from saeflow.config.study import Study

MOST = {"networks": 1000, "SAEs": 1000, "parts of stores": 5000}


def problems(study: Study) -> Iterator[str]:
    """A line for each thing that a study has more of than can be planned, naming what makes it so many."""
    for what, key, factors in _counts(study):
        if (n := math.prod(factors.values())) > MOST[what]:
            product = " x ".join(f"{n_of_one:,} {name}" for name, n_of_one in factors.items())
            yield f"{key}: {product} make {n:,} {what}; a study may have {MOST[what]:,}, so divide this one"


def _counts(study: Study) -> Iterator[tuple[str, str, dict[str, int]]]:
    """What is counted, the key that asks for it, and how many by what."""
    networks, images, language = study.classifiers, study.activations, study.language
    n_architectures = len(networks.architectures)
    members = sum(len(networks.seeds_of(role)) for role in networks.roles)
    yield "networks", "classifiers", {"architectures": n_architectures, "roles and seeds": members}
    captured = {
        "architectures": n_architectures,
        "roles": len(study.captured_roles),
        "seeds": len(networks.seeds),
        "hook points": len(images.hook_points),
    }
    yield "parts of stores", "activations", captured | {"shards": images.shards}
    yield "SAEs", "saes", captured | {"variants": len(study.saes.variants), "SAE seeds": len(study.saes.seeds)}
    if language:
        hooks = {"hook points of all models": sum(len(model.hook_points) for model in language.models.values())}
        saes = {"variants": len(language.saes.variants), "SAE seeds": len(language.saes.seeds)}
        yield "parts of stores", "language.activations", hooks | {"shards": language.activations.shards}
        yield "SAEs", "language.saes", hooks | saes
    if study.geometry and study.geometry.hierarchical and language:
        arms = study.geometry.hierarchical
        models = len(study.geometry.models or language.models)
        yield "SAEs", "geometry.hierarchical", {"models": models, "arms": len(arms.arms), "seeds": len(arms.seeds)}
