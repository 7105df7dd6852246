"""Run every network that injection methods can reach over the images that most of them ask about, once for all."""

from pathlib import Path

from saeflow.config.images import Classifiers
from saeflow.config.injection import Injection
from saeflow.datasets.images import ImageDataset
from saeflow.injection import captured
from saeflow.injection.materials import Materials
from saeflow.injection.study import Images
from saeflow.rule import run


def main(*, dataset: Path, weights: list[Path], values: Path, cfg: dict) -> None:
    """
    Arguments:
        dataset: .npz of `build_dataset`.
        weights: .safetensors of `train_classifiers`, of every role and architecture that methods can reach.
        values: .safetensors to write, as `saeflow.injection.captured.save` has it.
        cfg: `injection` and `classifiers` (sections), `seed` (root of the draws), `device`.
    """
    data = ImageDataset.load(dataset)
    spec = Injection.model_validate(cfg["injection"])
    roles = Classifiers.model_validate(cfg["classifiers"])
    materials = Materials.of(data, spec, roles, weights, seed=cfg["seed"], device=cfg["device"])
    calibration = Images.of(data.calibration, cfg["device"], materials.task.target_classes)
    captured.save(materials, calibration.images, Images.of(data.test, cfg["device"]).images, values)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
