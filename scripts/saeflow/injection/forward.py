"""Networks run over whole sets of images: in batches that fit the device, and each set only once."""

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.models.classifiers import StackedClassifier

_BATCH_SIZE = 2048
_MAX_REMEMBERED = 1 << 30


class Forward:
    """values = forward(network, images, hook_point), remembered while they are fewer than 1 GiB.

    On a GPU that runs out of memory the batch is halved and the run goes on; the values do not depend on the batch.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._remembered: dict[tuple[int, int, str], tuple[object, object, Tensor]] = {}

    @torch.no_grad()
    def __call__(
        self, network: StackedClassifier, images: Float[Tensor, "images 1 h w"], hook_point: str
    ) -> Float[Tensor, "members images d"]:
        """Values of all members at a hook point.  Shape [m, n, d]."""
        hook_point = network.resolve(hook_point)
        # The objects are kept beside the values, so that no other can come to live at their address.
        key = id(network), id(images), hook_point
        if key not in self._remembered:
            values = self._run(network, images, hook_point)
            self._remembered[key] = network, images, values
            while len(self._remembered) > 1 and self._bytes() > _MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        return self._remembered[key][2]

    def _bytes(self) -> int:
        return sum(values.nbytes for *_, values in self._remembered.values())

    def _run(self, network: StackedClassifier, images: Tensor, hook_point: str) -> Tensor:
        def run(batch_size: int) -> Tensor:
            batches = images.to(self.device).split(batch_size)
            return torch.cat([network.run(batch, (hook_point,))[1][hook_point] for batch in batches], dim=1)

        if self.device.type == "cpu":
            return run(_BATCH_SIZE)
        from accelerate.utils import find_executable_batch_size

        return find_executable_batch_size(run, starting_batch_size=_BATCH_SIZE)()
