"""Products of sparse codes with dense matrices, forward and for gradients, and the selection of active entries.

Members that are trained together are stacked: preactivations are [m, b, d_sae], and one call serves all of them,
because row member * b + i of the flattened batch and latent member * d_sae + f of the flattened dictionary are unique.

What wins was measured on one thread of a CPU with AVX-512 (batch 4096, 512 -> 4096, k 32; a dense product is 183 ms):
decoding by `embedding_bag` 5 ms, by a CSR product 9; gradients of code values by `sampled_addmm` 6.5, by the backward
kernel of `embedding_bag` 10; weight gradients by sorting entries by latent and `embedding_bag` over batch rows 0.6 + 5,
by a product with the transposed CSR matrix 9.

On an H200 (batch 2048, 768 -> 24576, k 32; a dense product is 1.55 ms, 0.29 in tf32) decoding takes 0.13 ms, gradients
of code values 0.09 and weight gradients 0.24 + 0.26. CSR products would take 0.06 and 0.09 for the first and the last,
but cuSPARSE promises no order of their sums.
"""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The layout is used as a plain container of indices here; the message would appear in every job's log.
warnings.filterwarnings("ignore", "Sparse (CSR tensor support is in beta|invariant checks)", UserWarning)

# torch sorts integers by radix from this length on, and 3 to 8 times slower by comparison below it.
_RADIX_LENGTH = 32769
_LEAST_PADDED = 4096


@dataclass
class Entries:
    """Candidates for activity: a sparse matrix [n_rows, n_latents], row after row.

    Arguments:
        offsets: where each row starts, and the end.  Shape [n_rows + 1].
        rows: row of each entry, ascending.  Shape [n].
        latents: flattened latent of each entry.  Shape [n].
        preactivations: of each entry.  Shape [n].
        n_latents: number of flattened latents.
    """

    offsets: Int[Tensor, " n_rows_plus_1"]
    rows: Int[Tensor, " n"]
    latents: Int[Tensor, " n"]
    preactivations: Float[Tensor, " n"]
    n_latents: int

    @property
    def n_rows(self) -> int:
        return self.offsets.numel() - 1

    def keep(self, mask: Tensor) -> "Entries":
        """The entries where `mask` holds."""
        kept = mask.nonzero().squeeze(1)
        return from_rows(
            self.rows.index_select(0, kept),
            self.latents.index_select(0, kept),
            self.preactivations.index_select(0, kept),
            n_rows=self.n_rows,
            n_latents=self.n_latents,
        )


@dataclass
class ByLatent:
    """Entries ordered by latent, rows ascending within a latent.

    Arguments:
        order: position of each among the entries in row order.  Shape [n].
        rows: row of each.  Shape [n].
        offsets: where each latent starts, and the end.  Shape [n_latents + 1].
    """

    order: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]
    offsets: Int[Tensor, " n_latents_plus_1"]

    def sums(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n_latents"]:
        """Sum over each latent of what its entries, given in row order, have."""
        return sum_runs(self.offsets, values.index_select(0, self.order))


def from_rows(rows: Tensor, latents: Tensor, preactivations: Tensor, *, n_rows: int, n_latents: int) -> Entries:
    """Entries from coordinates that are in row order already."""
    return Entries(starts(rows, n_rows), rows, latents, preactivations, n_latents)


def starts(keys: Int[Tensor, " n"], n_keys: int) -> Int[Tensor, " n_keys_plus_1"]:
    """Where the run of each key 0, 1, ... starts among ascending keys, and the end."""
    if keys.device.type != "cpu":
        # Counting would wait for the device.
        return torch.searchsorted(keys, torch.arange(n_keys + 1, dtype=keys.dtype, device=keys.device))
    offsets = torch.zeros(n_keys + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(keys, minlength=n_keys), 0, out=offsets[1:])
    return offsets


def top_k(x: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Largest k of each row, in no particular order, and where they are: exactly those of `torch.topk`, ties apart.

    The row is cut into groups; the k groups with the largest maxima hold the k largest values, and with groups of about
    sqrt(d / k) both searches are short. On a CPU integers are compared, because a comparison of floats looks for NaN as
    well. Both together: 2.5 times faster for 20 of 512, 3 for 32 of 4096; on an H200 groups alone 2.2 for 32 of 24576.
    """
    n, d = x.shape
    size = 1
    while 4 * size * size <= 2 * d / k and d % (2 * size) == 0:
        size *= 2
    if size < 4:
        return _largest(x, k)
    groups = _largest(x.view(n, size, d // size).amax(1), k)[1]
    members = torch.arange(0, d, d // size, device=x.device)
    candidates = (groups[:, None, :] + members[:, None]).view(n, k * size)
    largest, slots = _largest(x.gather(1, candidates), k)
    return largest, candidates.gather(1, slots)


def _largest(x: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    if x.device.type != "cpu":
        return x.topk(k, dim=1, sorted=False)
    keys, where = _ordered(x).topk(k, dim=1, sorted=False)
    return _ordered(keys.view(x.dtype)).view(x.dtype), where


def kth_largest(x: Float[Tensor, " n"], k: int) -> Float[Tensor, ""]:
    """The k-th largest value of a vector without negative ones: their bits are integers that compare alike."""
    if x.device.type != "cpu":
        # CUDA's kthvalue has no deterministic form.
        return x.sort(descending=True).values[k - 1]
    return _bits(x).kthvalue(x.numel() - k + 1).values.view(x.dtype)


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def _ordered(x: Tensor) -> Tensor:
    """Bits of floats as integers that compare as the floats do; its own inverse."""
    bits = _bits(x)
    return bits ^ ((bits >> (x.element_size() * 8 - 1)) & torch.iinfo(bits.dtype).max)


def true_positions(mask: Tensor) -> Int[Tensor, " n"]:
    """Flat positions where a contiguous boolean tensor holds, ascending.

    On a CPU eight flags are looked at as one integer first, which is faster where few of them hold.
    """
    flat = mask.view(-1)
    if mask.device.type != "cpu" or flat.numel() % 8 or flat.numel() < 1 << 20:
        return flat.nonzero().squeeze(1)
    words = flat.view(torch.int64).nonzero().squeeze(1)
    inside = flat.view(-1, 8).index_select(0, words).view(-1).nonzero().squeeze(1)
    return words.index_select(0, inside >> 3).mul_(8).add_(inside & 7)


def decode(
    offsets: Int[Tensor, " n_rows_plus_1"],
    latents: Int[Tensor, " n"],
    values: Float[Tensor, " n"],
    W_dec: Float[Tensor, "n_latents d"],
) -> Float[Tensor, "n_rows d"]:
    """Sum over each row's entries of value times decoder row."""
    return torch.embedding_bag(W_dec, latents, offsets, False, 0, False, values, True)[0]


def products(
    offsets: Int[Tensor, " n_rows_plus_1"],
    latents: Int[Tensor, " n"],
    g: Float[Tensor, "n_rows d"],
    W: Float[Tensor, "n_latents d"],
) -> Float[Tensor, " n"]:
    """g[row] . W[latent] of every entry: the gradient of code values."""
    pattern = torch.sparse_csr_tensor(
        offsets, latents, g.new_zeros(latents.numel()), (g.shape[0], W.shape[0]), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, g, W.t(), beta=0.0).values()


def by_latent(rows: Int[Tensor, " n"], latents: Int[Tensor, " n"], n_latents: int) -> ByLatent:
    """Sort entries by latent; stable, so that sums over a latent's rows always run in the same order."""
    keys = latents.to(torch.int16 if n_latents < 2**15 else torch.int32)
    n = keys.numel()
    if keys.device.type == "cpu" and _LEAST_PADDED <= n < _RADIX_LENGTH:
        padded = keys.new_full((_RADIX_LENGTH,), torch.iinfo(keys.dtype).max)
        padded[:n] = keys
        keys = padded
    ordered, order = (found[:n] for found in keys.sort(stable=True))
    return ByLatent(order, rows.index_select(0, order), starts(ordered, n_latents))


def sum_rows(
    order: ByLatent, values: Float[Tensor, " n"], table: Float[Tensor, "n_rows d"], start: int, stop: int
) -> Float[Tensor, "stop_minus_start d"]:
    """Sum of value times table row over the entries of each latent in [start, stop): rows of a weight gradient.

    Arguments:
        values: of the entries in the order of `order`.
    """
    offsets, rows = order.offsets, order.rows
    if start or stop + 1 < offsets.numel():
        first, last = offsets[start : stop + 1 : stop - start].tolist()
        offsets, rows, values = offsets[start : stop + 1] - first, rows[first:last], values[first:last]
    return torch.embedding_bag(table, rows, offsets, False, 0, False, values, True)[0]


def sum_runs(offsets: Int[Tensor, " n_plus_1"], values: Float[Tensor, " n_entries"]) -> Float[Tensor, " n"]:
    """Sum of each run of values, given where runs start, and the end."""
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, initial=0, unsafe=True)
