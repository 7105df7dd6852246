"""How often and how strongly each latent fires over a stream of codes, and where it fires most."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.sae.codes import Codes

_SORTED = 1 << 18  # entries that are worth a sort


class FiringStatistics:
    """Count, sum and maximum of the activations of each latent.

    Arguments:
        d_sae: number of latents.
    """

    def __init__(self, d_sae: int) -> None:
        self.n_rows = 0
        self.counts = torch.zeros(d_sae, dtype=torch.int64)
        self.sums = torch.zeros(d_sae, dtype=torch.float64)
        self.maxima = torch.zeros(d_sae)

    def update(self, codes: Codes) -> None:
        """Take codes of the next rows, on the CPU."""
        indices = codes.indices.long()
        self.n_rows += len(codes)
        self.counts += codes.firing_counts()
        self.sums += indices.bincount(codes.values.double(), minlength=len(self.sums))
        self.maxima.scatter_reduce_(0, indices, codes.values.float(), "amax")

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of rows on which each latent fires, float64."""
        return self.counts.double() / max(1, self.n_rows)

    @property
    def means(self) -> Float[Tensor, " d_sae"]:
        """Mean activation where a latent fires; 0 for one that never does."""
        return self.sums / self.counts.clamp(min=1)


class Histograms:
    """Activations of each latent, counted in equal bins from 0 to its maximum.

    Arguments:
        maxima: of each latent, over all rows that will come.  Shape [d_sae].
        n_bins: bins.
    """

    def __init__(self, maxima: Float[Tensor, " d_sae"], n_bins: int) -> None:
        self._maxima, self.n_bins = maxima, n_bins
        self.counts = torch.zeros(len(maxima), n_bins, dtype=torch.int64)

    def update(self, codes: Codes) -> None:
        """Take codes of rows, on the CPU."""
        indices = codes.indices.long()
        bins = (codes.values / self._maxima[indices] * self.n_bins).long().clamp(max=self.n_bins - 1)
        flat = (indices * self.n_bins + bins).bincount(minlength=self.counts.numel())
        self.counts += flat.view_as(self.counts)

    @property
    def edges(self) -> Float[Tensor, "d_sae edges"]:
        """Edges of the bins, n_bins + 1 for each latent."""
        return self._maxima[:, None] * torch.linspace(0, 1, self.n_bins + 1)


class TopContexts:
    """The rows on which each latent fires most, at most one per context.

    Equal activations go to the earlier row, so that the outcome does not depend on how the rows came.

    Arguments:
        d_sae: number of latents.
        k: contexts kept per latent.
    """

    def __init__(self, d_sae: int, k: int) -> None:
        self._k = k
        self._least = np.full(d_sae, -np.inf, np.float32)
        self.latents = np.empty(0, np.int64)
        self.activations = np.empty(0, np.float32)
        self.rows = np.empty(0, np.int64)
        self._contexts = np.empty(0, np.int64)
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._n_waiting = 0

    def update(self, codes: Codes, first_row: int, contexts: Int[np.ndarray, " n"]) -> None:
        """Take codes of the next rows, on the CPU.

        Arguments:
            first_row: number of the first of them.
            contexts: number of each row's context.
        """
        latents, values = codes.indices.numpy().astype(np.int64), codes.values.float().numpy()
        # What falls below the k-th of its latent cannot enter: nearly all, soon.
        enters = values > self._least[latents]
        rows = codes.rows.numpy()[enters]
        self._waiting.append((latents[enters], values[enters], rows + first_row, contexts[rows]))
        self._n_waiting += len(rows)
        # A sort costs what is kept as well as what is new, so that it waits until they are alike.
        if self._n_waiting >= max(_SORTED, len(self.rows)):
            self._merge()

    def close(self) -> "TopContexts":
        """End of the stream; what was found is read after this."""
        self._merge()
        return self

    def _merge(self) -> None:
        kept = (self.latents, self.activations, self.rows, self._contexts)
        columns = [np.concatenate(column) for column in zip(kept, *self._waiting, strict=True)]
        self._waiting, self._n_waiting = [], 0
        latents, values, rows, contexts = columns
        # The highest of each latent in each context, then the k highest of each latent.
        best = np.lexsort((rows, -values, contexts, latents))
        first = np.ones(len(best), bool)
        first[1:] = np.diff(latents[best]).astype(bool) | np.diff(contexts[best]).astype(bool)
        best = best[first]
        order = best[np.lexsort((rows[best], -values[best], latents[best]))]
        starts = np.searchsorted(latents[order], latents[order])
        rank = np.arange(len(order)) - starts
        kept = order[rank < self._k]
        self.latents, self.activations, self.rows, self._contexts = (c[kept] for c in columns)
        full = order[rank == self._k - 1]
        self._least[latents[full]] = values[full]

    @property
    def ranks(self) -> Int[np.ndarray, " n"]:
        """Place of each entry among those of its latent, from 0; entries are sorted by latent and place."""
        return np.arange(len(self.latents)) - np.searchsorted(self.latents, self.latents)
