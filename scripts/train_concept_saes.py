"""Train the SAEs that the injection methods read concepts from: one per role, architecture and seed, and their sweeps.

Each is trained on its network's last hidden layer, on training images of the classes that source or target know;
controls have their own, because an SAE belongs to the network that it was trained on.
"""

from pathlib import Path

from saeflow.config.images import Classifiers
from saeflow.config.injection import Injection
from saeflow.datasets.images import ImageDataset
from saeflow.injection import concept_saes
from saeflow.injection.materials import UNTRAINED, untrained
from saeflow.models import classifiers
from saeflow.rule import run


def main(*, dataset: Path, weights: list[Path], saes: Path, cfg: dict) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`; those of other roles than target, source and blind are not read.
        saes: .safetensors to write, all SAEs in one.
        cfg: `classifiers`, `injection` (sections), `seed` (root of the draws), `device`.
    """
    settings = Classifiers.model_validate(cfg["classifiers"])
    study = Injection.model_validate(cfg["injection"])
    roles = [role for role in (study.source, study.target, study.blind) if role is not None]
    described = {path: classifiers.describe(path) for path in weights}
    networks: dict[str, dict[str, classifiers.StackedClassifier]] = {role: {} for role in (*roles, *UNTRAINED)}
    for architecture in settings.architectures:
        for path, description in described.items():
            if description["architecture"] == architecture and (role := description["role"]) in roles:
                networks[role][architecture] = classifiers.load(path, cfg["device"], settings.seeds_of(role))
        for role, like in zip(UNTRAINED, (study.source, study.target), strict=True):
            networks[role][architecture] = untrained(networks[like][architecture], role, cfg["seed"])
    # What a control puts in a network's place sees the same images.
    source, target = (settings.roles[role].classes for role in (study.source, study.target))
    classes = {role: target if role in (study.target, UNTRAINED[1]) else source for role in networks}
    trained = concept_saes.train(
        networks,
        classes,
        ImageDataset.load(dataset).train,
        study.concept_spaces,
        swept=(study.source, study.target),
        seed=cfg["seed"],
        device=cfg["device"],
    )
    concept_saes.save(trained, saes)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
