"""What a reconstruction does to the output of the network that it is spliced into."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.models.classifiers import StackedClassifier


class SplicedOutput:
    """KL(p(x) || p(x_hat)), nats, where p(v) is the network's answer when the value at the hook point is v.

    Arguments:
        networks: member i belongs to store i of the training.
        hook: hook point of the stores.
    """

    def __init__(self, networks: StackedClassifier, hook: str) -> None:
        self._networks, self._hook = networks, hook
        self._selected: dict[tuple[int, ...], StackedClassifier] = {}

    def __call__(
        self, x_hat: Float[Tensor, "m b d_in"], x: Float[Tensor, "m b d_in"], members: Sequence[Any]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "m b d_in"]]:
        """Loss of each member, a mean over the batch, and its gradient with respect to x_hat.

        Arguments:
            members: each with the number of its `store`.
        """
        stores = tuple(member.store for member in members)
        if stores not in self._selected:
            self._selected[stores] = self._networks.select(stores).requires_grad_(False)
        network = self._selected[stores]
        log_p = network.run_from(self._hook, x).log_softmax(-1)
        with torch.enable_grad():
            leaf = x_hat.detach().requires_grad_()
            log_q = network.run_from(self._hook, leaf).log_softmax(-1)
            loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient
