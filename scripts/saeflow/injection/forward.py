"""Networks run over whole sets of images: in batches that fit the device, and each set only once."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.models.classifiers import StackedClassifier

_BATCH_SIZE = 2048
# Pairs go round the same sources for each target. Of MNIST, five architectures, three seeds, a method that sees doodles
# wants 1.3 GiB of them; with 1 GiB it ran a network 135 times where 90 do.
_MAX_REMEMBERED = 2 << 30

Key = tuple[int, int, str]
"""What made values and the images, by identity, and the hook point."""
Read = Callable[[StackedClassifier, Tensor, str], Tensor | None]


class Forward:
    """values = forward(network, images, hook_point), remembered while they are fewer than 2 GiB.

    On a GPU that runs out of memory the batch is halved and the run goes on; the values do not depend on the batch.

    Arguments:
        device: where networks run.
        read: gives values that a network, images and a hook point have been run for before, or None.
    """

    def __init__(self, device: torch.device | str, read: Read | None = None) -> None:
        self.device, self._read = torch.device(device), read
        self._bytes = 0
        self._remembered: dict[Key, tuple[object, Tensor, Tensor]] = {}
        self._parts: dict[Key, tuple[object, Tensor, Tensor]] = {}
        self._parts_of: str | None = None

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
        keys = [(id(network), id(images), network.resolve(hook_point)) for hook_point in hook_points]
        absent = [key for key in keys if key not in self._remembered]
        if absent:
            points = [hook_point for *_, hook_point in absent]
            read = [self._read(network, images, point) if self._read else None for point in points]
            if any(values is None for values in read):
                read = self._run(network, images, points)
            for key, values in zip(absent, read, strict=True):
                # The objects are kept beside the values, so that no other can come to live at their address.
                self._remembered[key] = network, images, values.to(self.device)
                self._bytes += values.nbytes
        found = [self._remembered[key][2] for key in keys]
        while len(self._remembered) > len(keys) and self._bytes > _MAX_REMEMBERED:
            self._bytes -= self._remembered.pop(next(iter(self._remembered)))[2].nbytes
        return found

    @torch.no_grad()
    def through(
        self,
        part: nn.Module,
        network: StackedClassifier,
        images: Float[Tensor, "images 1 h w"],
        hook_point: str,
    ) -> Float[Tensor, "members images *_"]:
        """What a module, row by row, makes of a network's values at a hook point.

        Remembered until networks of another architecture are asked for: what a target's heads share, no other has.
        """
        if network.architecture != self._parts_of:
            self._parts.clear()
            self._parts_of = network.architecture
        key = id(part), id(images), network.resolve(hook_point)
        if key not in self._parts:
            values = self(network, images, hook_point)
            made = torch.cat([part(batch) for batch in values.split(_BATCH_SIZE, dim=1)], dim=1)
            self._parts[key] = part, images, made
        return self._parts[key][2]

    def _run(self, network: StackedClassifier, images: Tensor, hook_points: Sequence[str]) -> list[Tensor]:
        def run(batch_size: int) -> list[Tensor]:
            ran = [network.values(batch, hook_points) for batch in images.to(self.device).split(batch_size)]
            return [torch.cat([values[hook_point] for values in ran], dim=1) for hook_point in hook_points]

        if self.device.type == "cpu":
            return run(_BATCH_SIZE)
        from accelerate.utils import find_executable_batch_size

        return find_executable_batch_size(run, starting_batch_size=_BATCH_SIZE)()
