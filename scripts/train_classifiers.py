"""Train every role and seed of one architecture at once.

Each role's networks go into one file, stacked along a leading axis in the order of the seeds, with a JSON beside it:
what they are, and how well each does.
"""

from pathlib import Path

from saeflow.config.images import Classifiers
from saeflow.datasets.images import ImageDataset
from saeflow.models import classifiers
from saeflow.models.classifier_training import Member, train
from saeflow.rule import run


def main(*, dataset: Path, weights: list[Path], cfg: dict) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors to write, one per role in the section's order; the .json gets the same stem.
        cfg: `architecture`, `classifiers` (section), `seed` (root of the draws), `device`.
    """
    data, settings = ImageDataset.load(dataset), Classifiers.model_validate(cfg["classifiers"])
    members = [
        Member(name, role.classes, seed) for name, role in settings.roles.items() for seed in settings.seeds_of(name)
    ]
    trained = train(cfg["architecture"], data, members, settings, seed=cfg["seed"], device=cfg["device"])
    for path, (name, role) in zip(weights, settings.roles.items(), strict=True):
        own = [i for i, member in enumerate(members) if member.role == name]
        accuracies = [trained.accuracies[i] for i in own]
        description = {
            "dataset": data.name,
            "role": name,
            "classes": list(role.classes),
            "members": [
                {"seed": members[i].seed, "train_accuracy": a.train, "test_accuracy": a.test}
                for i, a in zip(own, accuracies, strict=True)
            ],
            "test_accuracy_by_class": {str(c): [a.test_by_class[c] for a in accuracies] for c in role.classes},
        }
        classifiers.save(trained.classifier.select(own), path, description)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
