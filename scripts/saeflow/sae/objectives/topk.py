"""Sparsity by number: the k largest preactivations of a row, or on average over a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saeflow.config import saes
from saeflow.config.saes import Sparse
from saeflow.sae import kernels
from saeflow.sae.kernels import ByLatent, Entries
from saeflow.sae.objectives.base import Objective, Step

# From step to step the threshold moves by a few per cent: entries are looked for above the first of these shares of it,
# above the next if there are too few.
_BOUNDS = (0.8, 0.4, 0.0)
_FIRST_ROWS = 32


class TopK(Objective):
    """L = |x - x_hat|^2;  z = topk(relu(p), k) of each row.

    Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 3.
    """

    # A shorter row would never be among the k largest.
    resampled_length = 1.0

    def __init__(self, specs: Sequence[Sparse], parameters: dict[str, Tensor]) -> None:
        super().__init__(specs, parameters)
        self.k = max(spec.k for spec in specs)
        self._ks: Tensor | None = None
        if any(spec.k != self.k for spec in specs):
            self._ks = torch.tensor([spec.k for spec in specs], device=parameters["W_dec"].device)

    def _select(self, step: Step) -> Entries:
        n_rows = self.m * step.batch
        values, latents = [], []
        for _, p in self._chunks(step):
            largest, where = kernels.top_k(p.view(-1, self.d_sae), self.k)
            values.append(self._limit(largest.view(self.m, -1, self.k)))
            latents.append(where.view(self.m, -1, self.k))
        flat = torch.cat(latents, 1) if len(latents) > 1 else latents[0]
        if self.m > 1:
            flat += torch.arange(0, self.n_latents, self.d_sae, device=flat.device)[:, None, None]
        offsets = torch.arange(0, n_rows * self.k + 1, self.k, device=flat.device)
        rows = torch.arange(n_rows, device=flat.device)[:, None].expand(-1, self.k).reshape(-1)
        p = torch.cat(values, 1) if len(values) > 1 else values[0]
        return Entries(offsets, rows, flat.view(-1), p.view(-1), self.n_latents)

    def _limit(self, values: Tensor) -> Tensor:
        """Rectified values; those beyond the k of a member that has a smaller one are 0."""
        values = values.relu_()
        if self._ks is not None:
            ranks = values.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
            values.masked_fill_(ranks >= self._ks[:, None, None], 0)
        return values

    def _backward(self, entries: Entries, z: Tensor, dz: Tensor, order: ByLatent, step: Step) -> Tensor:
        return dz.mul_(z > 0)

    def _dense_values(self, p: Tensor) -> Tensor:
        values, latents = kernels.top_k(p.view(-1, self.d_sae), self.k)
        values = self._limit(values.view(self.m, -1, self.k))
        return p.zero_().scatter_(2, latents.view(values.shape), values)


class BatchTopK(Objective):
    """L = |x - x_hat|^2;  z = relu(p) where it is among the b k largest of the batch's b rows, else 0.

    Bussmann et al. 2024, "BatchTopK sparse autoencoders".

    The last step's threshold bounds where this step's is looked for. The selection is exact: with too few candidates it
    starts again from a lower bound, at last from 0.
    """

    needs_whole_batch = True
    resampled_length = 1.0

    def __init__(self, specs: Sequence[Sparse], parameters: dict[str, Tensor]) -> None:
        super().__init__(specs, parameters)
        self.threshold: Tensor | None = None

    def gradients(self, x: Tensor, **options):
        result = super().gradients(x, **options)
        result.threshold = self.threshold
        return result

    def _select(self, step: Step) -> Entries:
        if self.threshold is None:
            self.threshold = self._first_threshold(step)
        for share in _BOUNDS:
            bound = self.threshold.clamp(min=0) * share
            entries = self._above(step, bound[:, None, None])
            thresholds = self._thresholds(entries, step.batch, all_positive=share == 0)
            if thresholds is not None:
                break
        self.threshold = thresholds
        return entries.keep(entries.preactivations >= self._of_entries(entries, thresholds))

    def _first_threshold(self, step: Step) -> Tensor:
        """From a few rows: without it the first step would list every positive preactivation."""
        few = step.centered[:, :_FIRST_ROWS]
        p = torch.baddbmm(self.parameters["b_enc"][:, None], few, self.parameters["W_enc_T"].mT).view(self.m, -1)
        return torch.stack([p[i].topk(spec.k * few.shape[1]).values[-1] for i, spec in enumerate(self.specs)])

    def _thresholds(self, entries: Entries, batch: int, all_positive: bool = False) -> Tensor | None:
        """The (b k)-th largest entry of each member; None if one has too few and there may be more.

        Arguments:
            all_positive: the entries are all that can be active, so that the least of too few will do.
        """
        p = entries.preactivations
        borders = entries.offsets[batch::batch].tolist() if self.m > 1 else [p.numel()]
        found = []
        for spec, start, stop in zip(self.specs, (0, *borders), borders, strict=False):
            excess = stop - start - spec.k * batch
            if excess < 0 and not all_positive:
                return None
            found.append(
                kernels.kth_largest(p[start:stop], min(stop - start, spec.k * batch))
                if stop > start
                else p.new_zeros(())
            )
        return torch.stack(found)

    def _backward(self, entries: Entries, z: Tensor, dz: Tensor, order: ByLatent, step: Step) -> Tensor:
        return dz

    def _dense_values(self, p: Tensor) -> Tensor:
        flat = p.relu_().view(self.m, -1)
        thresholds = []
        for i, spec in enumerate(self.specs):
            n, candidates = spec.k * p.shape[1], flat[i]
            if self.threshold is not None:
                above = candidates[candidates > self.threshold[i] * _BOUNDS[0]]
                candidates = above if above.numel() >= n else candidates
            thresholds.append(kernels.kth_largest(candidates, n))
        self.threshold = torch.stack(thresholds)
        # Compared into floats, where the gradient will lie: a product with booleans costs a CPU five times as much.
        return p.mul_(torch.ge(p, self.threshold[:, None, None], out=self._held("dz", p.shape)))


class MatryoshkaBatchTopK(BatchTopK):
    """L = mean over prefixes g of |x - x_hat_g|^2;  x_hat_g = sum_{f < prefix_g} z_f W_dec,f + b_dec;  z of BatchTopK.

    Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders"; the paper sums over
    prefixes, the mean keeps the loss in the units of the other variants. A latent's output gradient is the sum over the
    prefixes that hold it, so that each group of latents between two prefixes is decoded once.
    """

    def __init__(self, specs: Sequence[saes.MatryoshkaBatchTopK], parameters: dict[str, Tensor]) -> None:
        super().__init__(specs, parameters)
        self.ends = specs[0].prefixes
