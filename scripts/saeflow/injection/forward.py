"""Networks run over whole sets of images: in batches that fit the device, and each set only once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.models.classifiers import StackedClassifier

_BATCH_SIZE = 2048
# Pairs go round the same sources for each target. Of MNIST, five architectures, three seeds, a method that sees doodles
# wants 1.3 GiB of them; with 1 GiB it ran a network 135 times where 90 do.
_MAX_REMEMBERED = 2 << 30


class Forward:
    """values = forward(network, images, hook_point), remembered while they are fewer than 2 GiB.

    On a GPU that runs out of memory the batch is halved and the run goes on; the values do not depend on the batch.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._remembered: dict[tuple[int, int, str], tuple[object, object, Tensor]] = {}

    def __call__(
        self, network: StackedClassifier, images: Float[Tensor, "images 1 h w"], hook_point: str
    ) -> Float[Tensor, "members images d"]:
        """Values of all members at a hook point.  Shape [m, n, d]."""
        return self.several(network, images, (hook_point,))[0]

    @torch.no_grad()
    def several(
        self, network: StackedClassifier, images: Float[Tensor, "images 1 h w"], hook_points: Sequence[str]
    ) -> list[Float[Tensor, "members images _"]]:
        """Values at several hook points, from one run."""
        # The objects are kept beside the values, so that no other can come to live at their address.
        keys = [(id(network), id(images), network.resolve(hook_point)) for hook_point in hook_points]
        absent = [key for key in keys if key not in self._remembered]
        if absent:
            ran = self._run(network, images, [hook_point for *_, hook_point in absent])
            self._remembered |= {key: (network, images, values) for key, values in zip(absent, ran, strict=True)}
        found = [self._remembered[key][2] for key in keys]
        while len(self._remembered) > len(keys) and self._bytes() > _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return found

    def _bytes(self) -> int:
        return sum(values.nbytes for *_, values in self._remembered.values())

    def _run(self, network: StackedClassifier, images: Tensor, hook_points: Sequence[str]) -> list[Tensor]:
        def run(batch_size: int) -> list[Tensor]:
            ran = [network.run(batch, hook_points)[1] for batch in images.to(self.device).split(batch_size)]
            return [torch.cat([values[hook_point] for values in ran], dim=1) for hook_point in hook_points]

        if self.device.type == "cpu":
            return run(_BATCH_SIZE)
        from accelerate.utils import find_executable_batch_size

        return find_executable_batch_size(run, starting_batch_size=_BATCH_SIZE)()
