"""A gate that decides which latents are active, and a magnitude that says how much."""

from typing import Any

import torch
from torch import Tensor

from saeflow.sae import kernels
from saeflow.sae.kernels import ByLatent, Entries
from saeflow.sae.objectives.base import Objective, Step


class Gated(Objective):
    """L = |x - x_hat|^2 + penalty * sum_f relu(p_f) + |x - relu(p) W_dec* - b_dec*|^2;  z = H(p) relu(q).

    p = h + b_gate,  q = exp(r_mag) h + b_mag,  h = (x - b_dec) W_enc; starred tensors are held fixed.
    Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", eq. 4-8.
    """

    bias = "b_gate"
    has_penalty = True

    @classmethod
    def initial_vectors(cls, spec: Any) -> dict[str, float]:
        return {"b_gate": 0.0, "b_mag": 0.0, "r_mag": 0.0}

    def _select(self, step: Step) -> Entries:
        return self._above(step, 0.0)

    def _at(self, name: str, entries: Entries) -> Tensor:
        return self.parameters[name].view(-1).index_select(0, entries.latents)

    def _values(self, entries: Entries) -> Tensor:
        h = entries.preactivations - self._at("b_gate", entries)
        return h.mul_(self._at("r_mag", entries).exp_()).add_(self._at("b_mag", entries)).relu_()

    def _backward(self, entries: Entries, z: Tensor, dz: Tensor, order: ByLatent, step: Step) -> Tensor:
        p = entries.preactivations
        W_dec = self.parameters["W_dec"].view(-1, self.d_in)
        frozen = kernels.decode(entries.offsets, entries.latents, p, W_dec).view(step.x.shape)
        table = self._frozen_table(frozen, step.x, step)
        dp = kernels.products(entries.offsets, entries.latents, table.view(-1, self.d_in), W_dec)
        dp += self._of_entries(entries, step.penalty)
        dq = dz.mul_(z > 0)
        through_q = dq * self._at("r_mag", entries).exp_()
        h = p - self._at("b_gate", entries)
        sums = {
            name: order.sums(values).view(self.m, -1)
            for name, values in {"b_gate": dp, "b_mag": dq, "r_mag": h.mul_(through_q)}.items()
        }
        step.add_vectors(**sums)
        return through_q.add_(dp)

    def _dense_values(self, p: Tensor) -> Tensor:
        h = p - self.parameters["b_gate"][:, None]
        return (
            h.mul_(self.parameters["r_mag"].exp()[:, None]).add_(self.parameters["b_mag"][:, None]).relu_().mul_(p > 0)
        )

    def _dense_backward(self, p: Tensor, z: Tensor, dz: Tensor, rows: slice, step: Step) -> Tensor:
        W_dec = self.parameters["W_dec"]
        dq = super()._dense_backward(p, z, dz, rows, step)
        through_q = dq * self.parameters["r_mag"].exp()[:, None]
        h = p - self.parameters["b_gate"][:, None]
        b_mag, r_mag = dq.sum(1), h.mul_(through_q).sum(1)
        opened = p.relu_()
        table = self._frozen_table(opened @ W_dec, step.x[:, rows], step)
        dp = torch.bmm(table, W_dec.mT, out=dz).add_(step.penalty[:, None, None])
        dp = super()._dense_backward(p, opened, dp, rows, step)
        step.add_vectors(b_gate=dp.sum(1), b_mag=b_mag, r_mag=r_mag)
        return through_q.add_(dp)

    def _frozen_table(self, parts: Tensor, x: Tensor, step: Step) -> Tensor:
        """Gradient of the third term with respect to its reconstruction."""
        error = parts.add_(self.parameters["b_dec"][:, None]).sub_(x)
        if step.measure:
            step.add_term("auxiliary", error.square().sum((1, 2)) / step.batch)
        return error.mul_(2 / step.batch)

    def _sparsity(self, p: Tensor, z: Tensor) -> Tensor:
        return p.relu()
