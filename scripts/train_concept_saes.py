"""Train the SAEs that the injection methods read concepts from: one per role, architecture and seed, and their sweeps.

Each is trained on its network's last hidden layer, on training images of the network's own classes.
"""

from pathlib import Path

from saeflow import config
from saeflow.datasets.images import ImageDataset
from saeflow.injection import concept_saes
from saeflow.models import classifiers
from saeflow.rule import run


def main(*, dataset: Path, weights: list[Path], saes: Path, cfg: dict) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`; those of other roles than target and source are not read.
        saes: .safetensors to write, all SAEs in one.
        cfg: `classifiers`, `injection` (sections), `seed` (root of the draws), `device`.
    """
    settings = config.Classifiers.model_validate(cfg["classifiers"])
    study = config.Injection.model_validate(cfg["injection"])
    roles = (study.target, study.source)
    described = {path: classifiers.describe(path) for path in weights}
    networks: dict[str, dict[str, classifiers.StackedClassifier]] = {role: {} for role in roles}
    for architecture in settings.architectures:
        for path, description in described.items():
            if description["architecture"] == architecture and description["role"] in networks:
                role = description["role"]
                networks[role][architecture] = classifiers.load(path, cfg["device"], settings.seeds_of(role))
    trained = concept_saes.train(
        networks,
        {role: settings.roles[role].classes for role in roles},
        ImageDataset.load(dataset).train,
        study.concept_spaces,
        seed=cfg["seed"],
        device=cfg["device"],
    )
    concept_saes.save(trained, saes)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
