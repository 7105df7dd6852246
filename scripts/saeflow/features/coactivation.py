"""Which latents fire together: the Jaccard similarity of the sets of rows on which they fire."""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saeflow.features.code_file import CodeFile
from saeflow.sae.codes import Codes

_ROWS = 16384
_BYTES = 24  # per pair of latents: counts, what they are divided by, the quotient


def neighbours(
    codes: CodeFile, counts: Int[np.ndarray, " d_sae"], k: int, memory_mb: int
) -> tuple[Int[np.ndarray, "d_sae k"], Float[np.ndarray, "d_sae k"]]:
    """The k latents that fire most often together with each: |A and B| / |A or B|, descending.

    Counts are exact and held for a stripe of latents at a time, as many as memory allows; each stripe reads the codes
    once.

    Arguments:
        codes: of all rows.
        counts: rows on which each latent fires.
        k: neighbours per latent; fewer if there are fewer latents.
        memory_mb: for the counts of a stripe, in MiB.
    Returns:
        latents and similarities; -1 and 0 where no other latent ever fires together with one.
    """
    d_sae, k = codes.d_sae, min(k, codes.d_sae - 1)
    if k == 0:
        return np.empty((d_sae, 0), np.int32), np.empty((d_sae, 0), np.float32)
    stripe = max(1, min(d_sae, (memory_mb << 20) // (_BYTES * d_sae)))
    found, similarity = np.full((d_sae, k), -1, np.int32), np.zeros((d_sae, k), np.float32)
    for first in range(0, d_sae, stripe):
        own = np.arange(first, min(first + stripe, d_sae))
        together = np.zeros((len(own), d_sae), np.int32)
        for _, block in codes.blocks(_ROWS):
            fires = _pattern(block)
            pairs = (fires[:, own[0] : own[-1] + 1].T.tocsr() @ fires).tocoo()
            together[pairs.row, pairs.col] += pairs.data
        together[np.arange(len(own)), own] = 0
        either = np.maximum(counts[own, None] + counts[None, :] - together, 1)
        jaccard = (together / either).astype(np.float32)
        row, other, rank = _highest(jaccard, k)
        similarity[own[row], rank] = jaccard[row, other]
        found[own[row], rank] = other
    return found, similarity


def _highest(
    values: Float[np.ndarray, "n m"], k: int
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """The k highest positive values of each row: row, column and rank; equal ones in the order of the columns."""
    least = -np.partition(-values, k - 1, axis=1)[:, k - 1]
    row, column = np.nonzero((values >= least[:, None]) & (values > 0))
    order = np.lexsort((column, -values[row, column], row))
    row, column = row[order], column[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < k
    return row[kept], column[kept], rank[kept]


def _pattern(codes: Codes) -> csr_array:
    """1 where a latent fires."""
    ones = np.ones(len(codes.values), np.int32)
    return csr_array((ones, codes.indices.numpy(), codes.offsets.numpy()), shape=(len(codes), codes.d_sae))
