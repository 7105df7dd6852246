"""How large a study may be: as many networks, SAEs and parts of stores as Snakemake plans in about a minute.

Planning takes more than linear time: 1,000 SAEs took 45 s, 3,000 eight minutes (one core, Snakemake 9.27).
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeflow.config import Study

MOST = {"networks": 1000, "SAEs": 1000, "parts of stores": 5000}


def check_size(study: "Study") -> None:
    """Raises ValueError where a study has more of something than can be planned, naming what makes it so many."""
    networks, images, language = study.classifiers, study.activations, study.language
    n_architectures = len(networks.architectures)
    _check(
        "networks",
        "classifiers",
        {"architectures": n_architectures, "roles and seeds": sum(len(networks.seeds_of(r)) for r in networks.roles)},
    )
    captured = {
        "architectures": n_architectures,
        "roles": len(study.captured_roles),
        "seeds": len(networks.seeds),
        "hook points": len(images.hook_points),
    }
    _check("parts of stores", "activations", captured | {"shards": images.shards})
    _check("SAEs", "saes", captured | {"variants": len(study.saes.variants), "SAE seeds": len(study.saes.seeds)})
    if language:
        hooks = {"hook points of all models": sum(len(model.hook_points) for model in language.models.values())}
        saes = {"variants": len(language.saes.variants), "SAE seeds": len(language.saes.seeds)}
        _check("parts of stores", "language.activations", hooks | {"shards": language.activations.shards})
        _check("SAEs", "language.saes", hooks | saes)
    if study.geometry and study.geometry.hierarchical and language:
        arms = study.geometry.hierarchical
        models = len(study.geometry.models or language.models)
        _check("SAEs", "geometry.hierarchical", {"models": models, "arms": len(arms.arms), "seeds": len(arms.seeds)})


def _check(what: str, key: str, factors: dict[str, int]) -> None:
    if (found := math.prod(factors.values())) > MOST[what]:
        product = " x ".join(f"{n:,} {name}" for name, n in factors.items())
        raise ValueError(f"{key}: {product} make {found:,} {what}; a study may have {MOST[what]:,}, so divide this one")
