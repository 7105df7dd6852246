"""Feature bank: on what each latent fires and how often, from one pass over the sparse codes of any store."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.sae.codes import Codes


@dataclass(frozen=True)
class Examples:
    """Rows kept per latent. Where a latent fires on fewer than k rows, the last ones are row -1, value 0."""

    rows: Int[Tensor, "d_sae k"]
    values: Float[Tensor, "d_sae k"]

    @property
    def present(self) -> Bool[Tensor, "d_sae k"]:
        return self.rows >= 0

    def of(self, latents: Int[Tensor, " some"]) -> "Examples":
        """The examples of some latents."""
        return Examples(self.rows[latents], self.values[latents])

    def first(self, n: int) -> "Examples":
        """The first n examples of each latent."""
        return Examples(self.rows[:, :n], self.values[:, :n])

    def by_value(self) -> "Examples":
        """The same examples, highest value first, absent ones last."""
        keys = torch.where(self.present, self.values, -torch.inf)
        order = torch.argsort(keys, dim=1, descending=True, stable=True)
        return Examples(self.rows.gather(1, order), self.values.gather(1, order))


@dataclass(frozen=True)
class FeatureBank:
    """What one pass over the codes z [n_rows, d_sae] says of each latent."""

    n_rows: int
    n_active: Int[Tensor, " d_sae"]
    """Rows with z != 0."""
    total: Float[Tensor, " d_sae"]
    """Sum of z over the rows, float64."""
    top: Examples
    """Highest activations, the highest first; among equal ones the lower row first."""
    sample: Examples
    """Uniform sample of the rows on which the latent fires, in random order: the first n are a uniform sample too."""
    label_counts: Int[Tensor, "d_sae labels"] | None
    """Firing rows per label; None without labels."""
    label_mass: Float[Tensor, "d_sae labels"] | None
    """Sum of z per label, float64."""
    label_rows: Int[Tensor, " labels"] | None
    """Rows per label, firing or not."""

    @property
    def activation_rate(self) -> Float[Tensor, " d_sae"]:
        """Share of the rows on which a latent fires."""
        return self.n_active.double() / max(self.n_rows, 1)

    @property
    def mean_active(self) -> Float[Tensor, " d_sae"]:
        """Mean of z over the rows on which the latent fires; 0 where there is none."""
        return self.total / self.n_active.clamp(min=1)

    @property
    def max_active(self) -> Float[Tensor, " d_sae"]:
        """Highest activation; 0 for the dead."""
        return self.top.values[:, 0]

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Whether a latent fires on no row."""
        return self.n_active == 0

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a row."""
        return float(self.n_active.sum()) / max(self.n_rows, 1)

    @property
    def label_shares(self) -> Float[Tensor, "d_sae labels"] | None:
        """Share of a latent's activation mass per label; rows of zeros for the dead."""
        if self.label_mass is None:
            return None
        mass = self.label_mass.abs()
        return mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


def collect(
    batches: Iterable[Codes],
    *,
    top: int,
    sample: int = 1,
    labels: Int[Tensor, " n_rows"] | None = None,
    n_labels: int | None = None,
    seed: int = 0,
) -> FeatureBank:
    """Bank of a stream of codes: memory is O(d_sae * (top + sample + n_labels)), however many rows there are.

    Arguments:
        batches: codes of consecutive rows (`blocks.encoded`).
        top: highest activating rows to keep per latent.
        sample: randomly drawn firing rows to keep per latent.
        labels: an integer label in [0, n_labels) of each row of the whole stream.
        n_labels: number of labels, max + 1 if not given.
        seed: of the sample.
    Raises:
        ValueError: no batch, labels out of range, or not as many labels as rows.
    """
    if labels is not None:
        n_labels = n_labels or int(labels.max()) + 1
        if int(labels.min()) < 0 or int(labels.max()) >= n_labels:
            raise ValueError(f"labels: {int(labels.min())} to {int(labels.max())}, expected 0 to {n_labels - 1}")
    tally: _Tally | None = None
    for batch in batches:
        tally = tally or _Tally(batch, top, sample, labels, n_labels, seed)
        tally.add(batch)
    if tally is None:
        raise ValueError("batches: none given, one at least is needed")
    return tally.bank()


class _Tally:
    """Running sums and running best rows."""

    def __init__(
        self, like: Codes, top: int, sample: int, labels: Tensor | None, n_labels: int | None, seed: int
    ) -> None:
        d_sae, device = like.d_sae, like.values.device
        self.n_rows, self.seed = 0, seed
        self.n_active = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.total = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.top = _Best(d_sae, top, like.values)
        self.sample = _Best(d_sae, sample, like.values)
        self.labels = None if labels is None else labels.to(device)
        self.n_labels = n_labels or 0
        self.label_counts = torch.zeros(d_sae * self.n_labels, dtype=torch.int64, device=device)
        self.label_mass = torch.zeros(d_sae * self.n_labels, dtype=torch.float64, device=device)

    def add(self, batch: Codes) -> None:
        rows, latents, values = batch.rows + self.n_rows, batch.indices.long(), batch.values
        self.n_active += batch.firing_counts()
        self.total.index_add_(0, latents, values.double())
        self.top.offer(rows, latents, values, values.double())
        self.sample.offer(rows, latents, values, uniform_hash(rows, self.seed))
        if self.labels is not None:
            if self.n_rows + len(batch) > len(self.labels):
                raise ValueError(f"labels: {len(self.labels)} given, the codes have more rows")
            cells = latents * self.n_labels + self.labels[rows]
            self.label_counts += torch.bincount(cells, minlength=len(self.label_counts))
            self.label_mass.index_add_(0, cells, values.double())
        self.n_rows += len(batch)

    def bank(self) -> FeatureBank:
        found = (self.n_rows, self.n_active, self.total, self.top.examples(), self.sample.examples())
        if self.labels is None:
            return FeatureBank(*found, None, None, None)
        if len(self.labels) != self.n_rows:
            raise ValueError(f"labels: {len(self.labels)} given for {self.n_rows} rows")
        counts, mass = (t.unflatten(0, (-1, self.n_labels)) for t in (self.label_counts, self.label_mass))
        return FeatureBank(*found, counts, mass, torch.bincount(self.labels, minlength=self.n_labels))


class _Best:
    """Per latent the k rows of the highest keys; equal keys go to the lower row, whatever the order of the offers."""

    def __init__(self, d_sae: int, k: int, like: Tensor) -> None:
        self.k = k
        self.keys = torch.full((d_sae, k), -torch.inf, dtype=torch.float64, device=like.device)
        self.rows = torch.full((d_sae, k), -1, dtype=torch.int64, device=like.device)
        self.values = torch.zeros(d_sae, k, dtype=like.dtype, device=like.device)

    def offer(self, rows: Tensor, latents: Tensor, values: Tensor, keys: Tensor) -> None:
        # After the first batches hardly any firing reaches a latent's k-th best, so hardly anything is sorted.
        good = keys >= self.keys[latents, -1]
        touched, latents = torch.unique(latents[good], return_inverse=True)
        if not len(touched):
            return
        own = torch.arange(len(touched), device=rows.device).repeat_interleave(self.k)
        latents = torch.cat([own, latents])
        rows = torch.cat([self.rows[touched].flatten(), rows[good]])
        values = torch.cat([self.values[touched].flatten(), values[good]])
        keys = torch.cat([self.keys[touched].flatten(), keys[good]])
        order = torch.argsort(rows, stable=True)
        order = order[torch.argsort(keys[order], descending=True, stable=True)]
        order = order[torch.argsort(latents[order], stable=True)]
        latents = latents[order]
        place = torch.arange(len(order), device=rows.device) - torch.searchsorted(latents, latents)
        kept = place < self.k
        cell, order = (touched[latents[kept]], place[kept]), order[kept]
        self.keys[cell], self.rows[cell], self.values[cell] = keys[order], rows[order], values[order]

    def examples(self) -> Examples:
        return Examples(self.rows, self.values)


def uniform_hash(rows: Int[Tensor, " n"], seed: int) -> Float[Tensor, " n"]:
    """A number in [0, 1) for each row that depends on row and seed alone: a random order that needs no memory.

    splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"); products wrap.
    """
    x = rows + _signed(seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shift_right(x, shift)) * _signed(factor)
    return _shift_right(x ^ _shift_right(x, 31), 11).double() / 2**53


def _signed(x: int) -> int:
    """The low 64 bits as a signed integer."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Shift that fills with zeros: torch's own copies the sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)
