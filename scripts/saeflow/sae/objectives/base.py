"""The loss that all variants share, and its exact gradients by two routes: through active entries only, or dense."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow import config
from saeflow.sae import kernels
from saeflow.sae.dead import DeadLatents, auxk
from saeflow.sae.gradients import Gradients, RowGradient
from saeflow.sae.kernels import Entries

# Rows of preactivations that are held at a time, so that what follows the product finds them in the cache.
_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}

Splice = Callable[[Float[Tensor, "m b d_in"]], tuple[Float[Tensor, " m"], Float[Tensor, "m b d_in"]]]


class Objective(ABC):
    """L = mean over rows of [ |x - x_hat|^2 + penalty * sparsity ];  x_hat = z W_dec + b_dec,  z = f(p),
    p = (x - b_dec) W_enc + b_enc.

    m members of one variant and size are stacked along the first axis of every tensor. No sixth matrix product: b_dec's
    gradient through the encoder is a vector times W_enc, because it only needs the column sums of p's gradient.

    Arguments:
        specs: one per member; sizes are equal.
        parameters: W_enc_T and W_dec [m, d_sae, d_in], b_dec [m, d_in], the bias of p [m, d_sae], and the variant's own.
    """

    bias: ClassVar[str] = "b_enc"
    has_penalty: ClassVar[bool] = False

    def __init__(self, specs: Sequence[config.SparseAutoencoder], parameters: dict[str, Tensor]) -> None:
        self.specs = tuple(specs)
        self.parameters = parameters
        self.m, self.d_sae, self.d_in = parameters["W_enc_T"].shape
        self.n_latents = self.m * self.d_sae
        self.ends = (self.d_sae,)
        self._buffers: dict[str, Tensor] = {}
        W_dec = parameters["W_dec"]
        self.penalty = W_dec.new_zeros(self.m)
        if self.has_penalty:
            self.penalty = W_dec.new_tensor([spec.penalty for spec in specs])

    @classmethod
    def initial_vectors(cls, spec: Any) -> dict[str, float]:
        """Start values of one member's vectors over latents, by name."""
        return {cls.bias: 0.0}

    def gradients(
        self,
        x: Float[Tensor, "m b d_in"],
        *,
        dense: bool = False,
        warmup: float = 1.0,
        dead: DeadLatents | None = None,
        splice: Splice | None = None,
        measure: bool = False,
    ) -> Gradients:
        """Gradients of the loss on one batch.

        Arguments:
            x: normalised activations, the same for all members or not.
            dense: take the route through dense products.
            warmup: factor on every member's penalty, 0 to 1.
            dead: latents that the AuxK loss is to revive.
            splice: gives a loss of x_hat per member, and its gradient; it is added.
            measure: work out L0 and the terms of the loss as well.
        """
        centered = x - self.parameters["b_dec"][:, None]
        self._penalty = self.penalty * (warmup / x.shape[1])
        self._collected: dict[str, Tensor] = {}
        self._terms: dict[str, Tensor] = {}
        self._l0: Tensor | None = None
        route = self._dense if dense else self._sparse
        matrices, sums, error, fired, total = route(x, centered, dead, splice, measure)
        if dead is not None:
            extra = auxk(dead, error, x, centered, self.parameters["W_dec"])
            sums.view(-1).index_add_(0, extra.latents, extra.preactivations)
            for name in matrices:
                matrices[name].latents, matrices[name].extra = extra.latents, extra.rows[name]
            self._terms["auxk"] = extra.loss
        # b_dec is subtracted in front of the encoder as well.
        through_encoder = torch.bmm(sums[:, None], self.parameters["W_enc_T"])[:, 0]
        vectors = {self.bias: sums, "b_dec": total - through_encoder, **self._collected}
        return Gradients(matrices, vectors, error, fired, self._terms, self._l0, self._threshold())

    # What a variant decides.

    @abstractmethod
    def _select(self, centered: Tensor, dead: DeadLatents | None) -> Entries:
        """Entries that can be active or have a gradient."""

    def _values(self, entries: Entries) -> Tensor:
        """z at the entries."""
        return entries.preactivations

    @abstractmethod
    def _backward(self, entries: Entries, z: Tensor, dz: Tensor, x: Tensor) -> Tensor:
        """Gradient of the entries' preactivations, given that of their values; may overwrite dz."""

    @abstractmethod
    def _dense_values(self, p: Tensor) -> Tensor:
        """z from all preactivations [m, c, d_sae]; may overwrite p."""

    @abstractmethod
    def _dense_backward(self, p: Tensor, z: Tensor, dz: Tensor, x: Tensor, centered: Tensor) -> Tensor:
        """Gradient of p, given that of z; may overwrite dz. `p` is as `_dense_values` left it."""

    def _sparsity(self, p: Tensor, z: Tensor) -> Tensor | None:
        """What the penalty is multiplied with, per entry."""
        return None

    def _threshold(self) -> Tensor | None:
        return None

    def _chunk_rows(self, n_rows: int) -> int:
        """Rows whose preactivations are held at a time."""
        W = self.parameters["W_dec"]
        if self.m > 1:
            return n_rows
        limit = _CHUNK_BYTES[W.device.type] // (self.d_sae * W.element_size())
        return math.ceil(n_rows / math.ceil(n_rows / max(1, limit)))

    # The route through active entries.

    def _sparse(self, x: Tensor, centered: Tensor, dead: DeadLatents | None, splice: Splice | None, measure: bool) -> tuple:
        m, b, d = x.shape
        W_dec = self.parameters["W_dec"].view(-1, d)
        entries = self._select(centered, dead)
        z = self._values(entries)
        rows, offsets = self._table_rows(entries)
        parts = kernels.decode(offsets, entries.latents, z, W_dec).view(m, b, -1, d)
        error, table, total = self._tables(parts, x, splice, measure)
        flat = table.view(-1, d)
        dz = kernels.products(offsets, entries.latents, flat, W_dec)
        fired = kernels.sum_per_latent(entries.latents, z, self.n_latents).view(m, -1) > 0
        if measure:
            self._measure(entries.preactivations, z, lambda values: self._sum_by_member(entries, values), b)
        dp = self._backward(entries, z, dz, x)
        order = kernels.by_latent(rows, entries.latents, self.n_latents)
        encoder_order = order
        if len(self.ends) > 1:
            encoder_order = kernels.ByLatent(order.order, entries.rows.index_select(0, order.order), order.offsets)
        matrices = {
            "W_dec": RowGradient(flat, order, z.index_select(0, order.order)),
            "W_enc_T": RowGradient(centered.view(-1, d), encoder_order, dp.index_select(0, order.order)),
        }
        sums = kernels.sum_per_latent(entries.latents, dp, self.n_latents).view(m, -1)
        return matrices, sums, error, fired, total

    def _table_rows(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Row of each entry's output gradient, and where rows start: one per batch row and group of latents."""
        if len(self.ends) == 1:
            return entries.rows, entries.offsets
        ends = torch.tensor(self.ends, device=entries.latents.device)
        group = torch.bucketize(entries.latents % self.d_sae, ends, right=True)
        rows = entries.rows * len(self.ends) + group
        return rows, kernels.starts(torch.bincount(rows, minlength=entries.n_rows * len(self.ends)))

    def _sum_by_member(self, entries: Entries, values: Tensor) -> Tensor:
        if self.m == 1:
            return values.sum()[None]
        members = entries.latents.div(self.d_sae, rounding_mode="floor")
        return values.new_zeros(self.m).scatter_add_(0, members, values)

    def _above(self, centered: Tensor, bound: Tensor | float, dead: DeadLatents | None) -> Entries:
        """Entries whose preactivation exceeds a bound that broadcasts to [m, 1, d_sae]."""
        positions, values = [], []
        for start, p in self._chunks(centered, dead):
            found = kernels.true_positions(p > bound)
            values.append(p.view(-1).index_select(0, found))
            positions.append(found + start * self.d_sae)
        flat = positions[0] if len(positions) == 1 else torch.cat(positions)
        rows = flat.div(self.d_sae, rounding_mode="floor")
        latents = flat - rows * self.d_sae
        if self.m > 1:
            latents += rows.div(centered.shape[1], rounding_mode="floor") * self.d_sae
        preactivations = values[0] if len(values) == 1 else torch.cat(values)
        n_rows = self.m * centered.shape[1]
        return kernels.from_rows(rows, latents, preactivations, n_rows=n_rows, n_latents=self.n_latents)

    def _chunks(self, centered: Tensor, dead: DeadLatents | None):
        """First row and preactivations [m, c, d_sae] of each run of rows; overwritten by the next."""
        b = centered.shape[1]
        step = self._chunk_rows(b)
        bias = self.parameters[self.bias][:, None]
        if dead is not None:
            dead.start(self.m, b, centered)
        for start in range(0, b, step):
            c = min(step, b - start)
            p = self._buffer("p", c)
            torch.baddbmm(bias, centered[:, start : start + c], self.parameters["W_enc_T"].mT, out=p)
            if dead is not None:
                dead.read(p, start)
            yield start, p

    def _buffer(self, name: str, rows: int) -> Tensor:
        """Memory [m, rows, d_sae] that lives as long as this objective."""
        held = self._buffers.get(name)
        if held is None or held.numel() < self.m * rows * self.d_sae:
            held = self._buffers[name] = self.parameters["W_dec"].new_empty(self.m * rows * self.d_sae)
        return held[: self.m * rows * self.d_sae].view(self.m, rows, self.d_sae)

    # The dense route.

    def _dense(self, x: Tensor, centered: Tensor, dead: DeadLatents | None, splice: Splice | None, measure: bool) -> tuple:
        m, b, d = x.shape
        W_dec = self.parameters["W_dec"]
        if splice is not None and self._chunk_rows(b) < b:
            raise ValueError(f"splice_kl with d_sae {self.d_sae} and batch_size {b}: too large for the dense route")
        dW_dec, dW_enc_T = (self._matrix_buffer(name) for name in ("dW_dec", "dW_enc_T"))
        sums, total = x.new_zeros(m, self.d_sae), x.new_zeros(m, d)
        fired = torch.zeros(m, self.d_sae, dtype=torch.bool, device=x.device)
        errors = []
        groups = list(zip((0, *self.ends), self.ends, strict=False))
        for start, p in self._chunks(centered, dead):
            rows = slice(start, start + p.shape[1])
            z = self._dense_values(p)
            if measure:
                self._measure(p, z, lambda values: values.sum((1, 2)), b)
            parts = torch.stack([z[:, :, i:j] @ W_dec[:, i:j] for i, j in groups], 2)
            error, table, part_total = self._tables(parts, x[:, rows], splice, measure, b)
            fired |= z.amax(1) > 0
            dz = self._buffer("dz", p.shape[1])
            beta = float(start > 0)
            for g, (i, j) in enumerate(groups):
                torch.bmm(table[:, :, g], W_dec[:, i:j].mT, out=dz[:, :, i:j])
                dW_dec[:, i:j].baddbmm_(z[:, :, i:j].mT, table[:, :, g], beta=beta)
            dp = self._dense_backward(p, z, dz, x[:, rows], centered[:, rows])
            dW_enc_T.baddbmm_(dp.mT, centered[:, rows], beta=beta)
            sums += dp.sum(1)
            total += part_total
            errors.append(error)
        matrices = {"W_dec": RowGradient(dW_dec.view(-1, d)), "W_enc_T": RowGradient(dW_enc_T.view(-1, d))}
        return matrices, sums, errors[0] if len(errors) == 1 else torch.cat(errors, 1), fired, total

    def _matrix_buffer(self, name: str) -> Tensor:
        held = self._buffers.get(name)
        if held is None:
            held = self._buffers[name] = torch.empty_like(self.parameters["W_dec"])
        return held

    def release(self) -> None:
        """Give back the memory of both routes."""
        self._buffers.clear()

    # What both share.

    def _tables(
        self, parts: Tensor, x: Tensor, splice: Splice | None, measure: bool, batch: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Error of x_hat, gradient of the loss with respect to each group's output, and b_dec's gradient through x_hat.

        Arguments:
            parts: what each group of latents adds to x_hat.  Shape [m, c, g, d_in].
            batch: rows of the whole batch, if x is a part of it.
        """
        batch = batch or x.shape[1]
        n_groups = parts.shape[2]
        parts[:, :, 0] += self.parameters["b_dec"][:, None]
        for g in range(1, n_groups):
            parts[:, :, g] += parts[:, :, g - 1]
        x_hat = parts[:, :, -1]
        extra = None
        if splice is not None:
            self._terms["splice"], extra = splice(x_hat)
        parts -= x[:, :, None]
        error = x_hat
        if measure:
            self._add_term("reconstruction", parts.square().sum((1, 2, 3)) / (batch * n_groups))
        table = parts * (2 / (batch * n_groups))
        if extra is not None:
            table[:, :, -1] += extra
        for g in reversed(range(n_groups - 1)):
            table[:, :, g] += table[:, :, g + 1]
        return error, table, table[:, :, 0].sum(1)

    def _measure(self, p: Tensor, z: Tensor, sum_by_member: Callable[[Tensor], Tensor], batch: int) -> None:
        l0 = sum_by_member((z > 0).to(z.dtype)) / batch
        self._l0 = l0 if self._l0 is None else self._l0 + l0
        sparsity = self._sparsity(p, z)
        if sparsity is not None:
            self._add_term("sparsity", sum_by_member(sparsity) * self._penalty)

    def _add_term(self, name: str, value: Tensor) -> None:
        self._terms[name] = self._terms[name] + value if name in self._terms else value

    def _of_entries(self, entries: Entries, per_member: Tensor) -> Tensor | float:
        """A member's number at each of its entries."""
        if self.m == 1:
            return per_member
        return per_member.repeat_interleave(self.d_sae).index_select(0, entries.latents)
