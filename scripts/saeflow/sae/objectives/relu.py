"""ReLU with an L1 penalty."""

from torch import Tensor

from saeflow.sae.kernels import ByLatent, Entries
from saeflow.sae.objectives.base import Objective, Step


class ReLU(Objective):
    """L = |x - x_hat|^2 + penalty * sum_f z_f |W_dec,f|;  z = relu(p).

    Bricken et al. 2023, "Towards Monosemanticity". Decoder rows have length 1, so the last factor is 1; its gradient is
    along the row, where it is removed.
    """

    has_penalty = True

    def _select(self, step: Step) -> Entries:
        return self._above(step, 0.0)

    def _backward(self, entries: Entries, z: Tensor, dz: Tensor, order: ByLatent, step: Step) -> Tensor:
        return dz.add_(self._of_entries(entries, step.penalty))

    def _dense_values(self, p: Tensor) -> Tensor:
        return p.relu_()

    def _dense_backward(self, p: Tensor, z: Tensor, dz: Tensor, rows: slice, step: Step) -> Tensor:
        return super()._dense_backward(p, z, dz.add_(step.penalty[:, None, None]), rows, step)

    def _sparsity(self, p: Tensor, z: Tensor) -> Tensor:
        return z
