"""A learned threshold per latent, with an L0 penalty."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saeflow.config import saes
from saeflow.sae.kernels import ByLatent, Entries
from saeflow.sae.objectives.base import Objective, Step


class JumpReLU(Objective):
    """L = |x - x_hat|^2 + penalty * sum_f H(p_f - t_f);  z = p H(p - t),  t = exp(log_threshold).

    The steps have straight-through gradients with respect to t, from a window of width w around it:
    dz/dt = -t/w [|p - t| < w/2],  dH/dt = -1/w [|p - t| < w/2].
    Rajamanoharan et al. 2024, "Jumping ahead", eq. 9-12.
    """

    has_penalty = True

    def __init__(self, specs: Sequence[saes.JumpReLU], parameters: dict[str, Tensor]) -> None:
        super().__init__(specs, parameters)
        self._width = parameters["W_dec"].new_tensor([spec.bandwidth for spec in specs])

    @classmethod
    def initial_vectors(cls, spec: Any) -> dict[str, float]:
        # As in the paper, a threshold starts at the width of its window.
        return {"b_enc": 0.0, "log_threshold": math.log(spec.bandwidth)}

    @property
    def _thresholds(self) -> Tensor:
        return self.parameters["log_threshold"].exp()

    def _select(self, step: Step) -> Entries:
        return self._above(step, (self._thresholds - self._width[:, None] / 2)[:, None])

    def _values(self, entries: Entries) -> Tensor:
        p = entries.preactivations
        return p * (p > self._thresholds.view(-1).index_select(0, entries.latents))

    def _backward(self, entries: Entries, z: Tensor, dz: Tensor, order: ByLatent, step: Step) -> Tensor:
        thresholds = self._thresholds
        t = thresholds.view(-1).index_select(0, entries.latents)
        w = self._of_entries(entries, self._width)
        inside = (entries.preactivations - t).abs_() < w / 2
        dt = (t * dz).add_(self._of_entries(entries, step.penalty)).mul_(inside).div_(-w)
        step.add_vectors(log_threshold=order.sums(dt).view(self.m, -1) * thresholds)
        return dz.mul_(z > 0)

    def _dense_values(self, p: Tensor) -> Tensor:
        # Compared into floats, as in BatchTopK.
        return torch.gt(p, self._thresholds[:, None], out=self._held("z", p.shape)).mul_(p)

    def _dense_backward(self, p: Tensor, z: Tensor, dz: Tensor, rows: slice, step: Step) -> Tensor:
        t, w = self._thresholds, self._width[:, None]
        inside = (p - t[:, None]).abs_().lt_(w[:, None] / 2)
        n_inside = inside.sum(1)
        dt = (t * inside.mul_(dz).sum(1) + step.penalty[:, None] * n_inside) / -w
        step.add_vectors(log_threshold=dt * t)
        return super()._dense_backward(p, z, dz, rows, step)

    def _sparsity(self, p: Tensor, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)
