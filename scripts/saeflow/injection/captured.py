"""What the study's networks make of the images that most methods ask about: run once, read by every method's job."""

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from saeflow.injection.materials import UNTRAINED, Materials
from saeflow.models.classifiers import StackedClassifier

HOOK_POINTS = ("last.pre", "logits")
"""What is kept of each network; at a first layer, thousands of units wide, methods run it themselves."""


def sets(materials: Materials, calibration: Tensor, test: Tensor) -> Iterator[tuple[StackedClassifier, Tensor]]:
    """Networks, each with a set of images: training images that methods relate them on, doodles, what is answered."""
    settings, task = materials.settings, materials.task
    own, seen = (materials.images_of(classes).images for classes in (task.target_classes, task.source_classes))
    both = [own, materials.doodles]
    answered = [materials.named("calibration", calibration), materials.named("test", test)]
    of_role = dict.fromkeys((settings.target, UNTRAINED[1]), both + answered)
    of_role |= {key: [*both, seen] for key in filter(None, (settings.source, settings.blind, UNTRAINED[0]))}
    for role in settings.sequence.values():
        of_role.setdefault(role, [*both, materials.images_of(materials.classes[role]).images])
    for role, images in of_role.items():
        for architecture in materials.networks[settings.target]:
            yield from ((materials.stack(role, architecture), some) for some in images)


def save(materials: Materials, calibration: Tensor, test: Tensor, path: Path) -> None:
    """Run every network and write its values, [m, n, d] each, under the names of `Materials.name_of`.

    Arguments:
        calibration, test: images of splits that no method sees.
    """
    found: dict[str, Tensor] = {}
    for network, images in sets(materials, calibration, test):
        names = [materials.name_of(network, images, hook_point) for hook_point in HOOK_POINTS]
        found |= zip(names, materials.forward.several(network, images, HOOK_POINTS), strict=True)
    save_file({name: values.cpu().contiguous() for name, values in found.items()}, path)
