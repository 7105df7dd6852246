"""The loss that all variants share, and its exact gradients by two routes: through active entries only, or dense."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.config.saes import SparseAutoencoder
from saeflow.sae import kernels
from saeflow.sae.dead import DeadLatents, auxk
from saeflow.sae.gradients import Gradients, RowGradient
from saeflow.sae.kernels import ByLatent, Entries

# Preactivations held at a time: what follows the product then finds them in the cache, and memory stays small.
_CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}

Splice = Callable[[Float[Tensor, "m b d_in"]], tuple[Float[Tensor, " m"], Float[Tensor, "m b d_in"]]]


@dataclass
class Step:
    """One batch on its way through an objective.

    Arguments:
        x: normalised activations.  Shape [m, b, d_in].
        centered: x - b_dec.
        factor: what an error of x_hat, summed over a batch and groups, is multiplied with to be a gradient.
        penalty: of each member, for one row of the batch.  Shape [m].
        dead: latents that the AuxK loss revives.
        splice: gives a loss of x_hat for each member, and its gradient.
        measure: whether L0 and the terms of the loss are wanted.
        vectors: gradients of vectors so far.
        terms: parts of the loss so far, each [m].
    """

    x: Tensor
    centered: Tensor
    factor: float
    penalty: Tensor
    dead: DeadLatents | None
    splice: Splice | None
    measure: bool
    vectors: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return self.x.shape[1]

    def add_vectors(self, **gradients: Tensor) -> None:
        for name, gradient in gradients.items():
            self.vectors[name] = self.vectors[name] + gradient if name in self.vectors else gradient

    def add_term(self, name: str, value: Tensor) -> None:
        self.terms[name] = self.terms[name] + value if name in self.terms else value


class Objective(ABC):
    """L = mean over rows of [ |x - x_hat|^2 + penalty * sparsity ];  x_hat = z W_dec + b_dec,  z = f(p),
    p = (x - b_dec) W_enc + bias.

    m members of one variant and size are stacked along the first axis of every tensor. No sixth matrix product: b_dec's
    gradient through the encoder is a vector times W_enc, because it only needs the column sums of p's gradient.

    Arguments:
        specs: one per member; sizes are equal.
        parameters: W_enc_T and W_dec [m, d_sae, d_in], b_dec [m, d_in], and vectors over latents [m, d_sae].
    """

    bias: ClassVar[str] = "b_enc"
    has_penalty: ClassVar[bool] = False
    needs_whole_batch: ClassVar[bool] = False
    # Length of a resampled encoder row relative to the living ones, as in Bricken et al. 2023.
    resampled_length: ClassVar[float] = 0.2

    def __init__(self, specs: Sequence[SparseAutoencoder], parameters: dict[str, Tensor]) -> None:
        self.specs = tuple(specs)
        self.parameters = parameters
        self.m, self.d_sae, self.d_in = parameters["W_enc_T"].shape
        self.n_latents = self.m * self.d_sae
        self.ends: tuple[int, ...] = (self.d_sae,)
        self._memory: dict[str, Tensor] = {}
        penalties = [spec.penalty for spec in specs] if self.has_penalty else [0.0] * self.m
        self.penalty = parameters["W_dec"].new_tensor(penalties)

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
        """Gradients of the loss on one batch; they live in memory that the next call takes again.

        Arguments:
            x: normalised activations, the same for all members or not.
            dense: take the route through dense products.
            warmup: factor on every member's penalty, 0 to 1.
            dead: latents that the AuxK loss is to revive.
            splice: gives a loss of x_hat for each member, and its gradient; both are added.
            measure: work out L0 and the terms of the loss as well.
        """
        centered = torch.sub(x, self.parameters["b_dec"][:, None], out=self._held("centered", x.shape))
        b = x.shape[1]
        step = Step(x, centered, 2 / (b * len(self.ends)), self.penalty * (warmup / b), dead, splice, measure)
        result = self._dense(step) if dense else self._sparse(step)
        sums = result.vectors.pop("p")
        step.vectors.setdefault(self.bias, sums)
        if dead is not None:
            extra = auxk(dead, result.error, x, centered, self.parameters["W_dec"])
            for total in {id(t): t for t in (sums, step.vectors[self.bias])}.values():
                total.view(-1).index_add_(0, extra.latents, extra.preactivations)
            for name, gradient in result.matrices.items():
                gradient.latents, gradient.extra = extra.latents, extra.rows[name]
            step.terms["auxk"] = extra.loss
        # b_dec is subtracted in front of the encoder as well.
        result.vectors["b_dec"] -= torch.bmm(sums[:, None], self.parameters["W_enc_T"])[:, 0]
        result.vectors.update(step.vectors)
        result.terms = step.terms
        result.l0 = result.terms.pop("l0", None)
        return result

    # What a variant decides.

    @abstractmethod
    def _select(self, step: Step) -> Entries:
        """Entries that can be active or have a gradient."""

    def _values(self, entries: Entries) -> Tensor:
        """z at the entries."""
        return entries.preactivations

    @abstractmethod
    def _backward(self, entries: Entries, z: Tensor, dz: Tensor, order: ByLatent, step: Step) -> Tensor:
        """Gradient of the entries' preactivations, given that of their values; may overwrite dz."""

    @abstractmethod
    def _dense_values(self, p: Tensor) -> Tensor:
        """z from all preactivations [m, c, d_sae]; may overwrite p."""

    def _dense_backward(self, p: Tensor, z: Tensor, dz: Tensor, rows: slice, step: Step) -> Tensor:
        """Gradient of p, given that of z; may overwrite dz.

        Arguments:
            p: as `_dense_values` left it.
            rows: where it lies in the batch.
        """
        return torch.ops.aten.threshold_backward.grad_input(dz, z, 0, grad_input=dz)

    def _sparsity(self, p: Tensor, z: Tensor) -> Tensor | None:
        """What the penalty is multiplied with, entry by entry."""
        return None

    # The route through active entries.

    def _sparse(self, step: Step) -> Gradients:
        m, b, d = step.x.shape
        W_dec = self.parameters["W_dec"].view(-1, d)
        entries = self._select(step)
        z = self._values(entries)
        rows, offsets = self._table_rows(entries)
        parts = kernels.decode(offsets, entries.latents, z, W_dec).view(m, b, -1, d)
        if step.measure:
            self._measure(step, entries.preactivations, z, lambda values: self._sum_by_member(entries, values))
        error, table, total = self._tables(parts, step.x, step)
        table = table.view(-1, d)
        dz = kernels.products(offsets, entries.latents, table, W_dec).mul_(step.factor)
        order = kernels.by_latent(rows, entries.latents, self.n_latents)
        z_by_latent = z.index_select(0, order.order)
        fired = kernels.sum_runs(order.offsets, z_by_latent).view(m, -1) > 0
        dp = self._backward(entries, z, dz, order, step).index_select(0, order.order)
        encoder_order = order
        if len(self.ends) > 1:
            encoder_order = ByLatent(order.order, entries.rows.index_select(0, order.order), order.offsets)
        matrices = {
            "W_dec": RowGradient(table, order, z_by_latent.mul_(step.factor)),
            "W_enc_T": RowGradient(step.centered.view(-1, d), encoder_order, dp),
        }
        sums = kernels.sum_runs(order.offsets, dp).view(m, -1)
        return Gradients(matrices, {"p": sums, "b_dec": total}, error, fired)

    def _table_rows(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Row of each entry's output gradient, and where these rows start: one per batch row and group of latents."""
        if len(self.ends) == 1:
            return entries.rows, entries.offsets
        ends = torch.tensor(self.ends, device=entries.latents.device)
        group = torch.bucketize(entries.latents % self.d_sae, ends, right=True)
        rows = entries.rows * len(self.ends) + group
        return rows, kernels.starts(rows, entries.n_rows * len(self.ends))

    def _above(self, step: Step, bound: Tensor | float) -> Entries:
        """Entries whose preactivation exceeds a bound that broadcasts to [m, 1, d_sae]."""
        positions, values = [], []
        for start, p in self._chunks(step):
            found = kernels.true_positions(p > bound)
            values.append(p.view(-1).index_select(0, found))
            positions.append(found.add_(start * self.d_sae))
        flat = torch.cat(positions) if len(positions) > 1 else positions[0]
        rows = flat.div(self.d_sae, rounding_mode="floor")
        latents = flat.sub_(rows * self.d_sae)
        if self.m > 1:
            latents += rows.div(step.batch, rounding_mode="floor") * self.d_sae
        preactivations = torch.cat(values) if len(values) > 1 else values[0]
        return kernels.from_rows(rows, latents, preactivations, n_rows=self.m * step.batch, n_latents=self.n_latents)

    def _of_entries(self, entries: Entries, per_member: Tensor) -> Tensor:
        """A member's number at each of its entries."""
        if self.m == 1:
            return per_member
        return per_member.repeat_interleave(self.d_sae).index_select(0, entries.latents)

    def _sum_by_member(self, entries: Entries, values: Tensor) -> Tensor:
        return kernels.sum_runs(entries.offsets[:: entries.n_rows // self.m], values)

    # The dense route.

    def _dense(self, step: Step) -> Gradients:
        m, _, d = step.x.shape
        W_dec = self.parameters["W_dec"]
        dW_dec, dW_enc_T = (self._held(name, W_dec.shape) for name in ("dW_dec", "dW_enc_T"))
        decoded = self._held("decoded", (m, step.batch, len(self.ends), d))
        sums, total = step.x.new_zeros(m, self.d_sae), step.x.new_zeros(m, d)
        fired = torch.zeros(m, self.d_sae, dtype=torch.bool, device=W_dec.device)
        groups = [slice(i, j) for i, j in zip((0, *self.ends), self.ends, strict=False)]
        for start, p in self._chunks(step, whole=self.needs_whole_batch or step.splice is not None):
            rows = slice(start, start + p.shape[1])
            z = self._dense_values(p)
            if step.measure:
                self._measure(step, p, z, lambda values: values.sum((1, 2)))
            for g, group in enumerate(groups):
                torch.bmm(z[:, :, group], W_dec[:, group], out=decoded[:, rows, g])
            error, table, part_of_total = self._tables(decoded[:, rows], step.x[:, rows], step)
            fired |= z.sum(1) > 0
            dz = self._held("dz", p.shape)
            beta = float(start > 0)
            for g, group in enumerate(groups):
                dz_of_group, factor = dz[:, :, group], step.factor
                torch.baddbmm(dz_of_group, table[:, :, g], W_dec[:, group].mT, beta=0, alpha=factor, out=dz_of_group)
                dW_dec[:, group].baddbmm_(z[:, :, group].mT, table[:, :, g], beta=beta, alpha=factor)
            dp = self._dense_backward(p, z, dz, rows, step)
            dW_enc_T.baddbmm_(dp.mT, step.centered[:, rows], beta=beta)
            sums += dp.sum(1)
            total += part_of_total
        matrices = {"W_dec": RowGradient(dW_dec.view(-1, d)), "W_enc_T": RowGradient(dW_enc_T.view(-1, d))}
        if step.splice is None:
            error = decoded[:, :, -1]
        return Gradients(matrices, {"p": sums, "b_dec": total}, error, fired)

    # What both share.

    def _chunks(self, step: Step, whole: bool = False) -> Iterator[tuple[int, Tensor]]:
        """First row and preactivations [m, c, d_sae] of each run of rows; overwritten by the next run."""
        W_enc_T = self.parameters["W_enc_T"]
        rows = step.batch
        if self.m == 1 and not whole:
            limit = max(1, _CHUNK_BYTES[W_enc_T.device.type] // (self.d_sae * W_enc_T.element_size()))
            rows = math.ceil(step.batch / math.ceil(step.batch / limit))
        if step.dead is not None:
            step.dead.start(step.x)
        for start in range(0, step.batch, rows):
            centered = step.centered[:, start : start + rows]
            p = self._held("p", (self.m, centered.shape[1], self.d_sae))
            if self.m == 1:
                # Adds the bias while it multiplies; the other writes it into p first.
                torch.addmm(self.parameters[self.bias][0], centered[0], W_enc_T[0].mT, out=p[0])
            else:
                torch.baddbmm(self.parameters[self.bias][:, None], centered, W_enc_T.mT, out=p)
            if step.dead is not None:
                step.dead.read(p, start)
            yield start, p

    def _held(self, name: str, shape: Sequence[int]) -> Tensor:
        """Memory that lives as long as this objective."""
        size = math.prod(shape)
        held = self._memory.get(name)
        if held is None or held.numel() < size:
            held = self._memory[name] = self.parameters["W_dec"].new_empty(size)
        return held[:size].view(shape)

    def release(self) -> None:
        """Give back all memory that is held from step to step."""
        self._memory.clear()

    def release_dense(self) -> None:
        """Give back the memory that only the dense route needs."""
        for name in ("z", "dz", "dW_dec", "dW_enc_T", "decoded"):
            self._memory.pop(name, None)

    def _tables(self, parts: Tensor, x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Error of x_hat, gradient of the loss with respect to each group's output, and b_dec's gradient through x_hat.

        Arguments:
            parts: what each group of latents adds to x_hat; overwritten.  Shape [m, c, g, d_in].
            x: the same rows of the batch.
        Returns:
            error [m, c, d_in]; output gradients [m, c, g, d_in], still to be multiplied with `step.factor`; b_dec's
            gradient [m, d_in].
        """
        n_groups = parts.shape[2]
        parts[:, :, 0] += self.parameters["b_dec"][:, None]
        for g in range(1, n_groups):
            parts[:, :, g] += parts[:, :, g - 1]
        spliced = None
        if step.splice is not None:
            step.terms["splice"], spliced = step.splice(parts[:, :, -1])
        parts -= x[:, :, None]
        if step.measure:
            step.add_term("reconstruction", parts.square().sum((1, 2, 3)) / (step.batch * n_groups))
        error = parts[:, :, -1]
        if spliced is not None:
            error = error.clone()
            parts[:, :, -1].add_(spliced, alpha=1 / step.factor)
        for g in reversed(range(n_groups - 1)):
            parts[:, :, g] += parts[:, :, g + 1]
        return error, parts, parts[:, :, 0].sum(1).mul_(step.factor)

    def _measure(self, step: Step, p: Tensor, z: Tensor, sum_by_member: Callable[[Tensor], Tensor]) -> None:
        step.add_term("l0", sum_by_member((z > 0).to(z.dtype)) / step.batch)
        sparsity = self._sparsity(p, z)
        if sparsity is not None:
            step.add_term("sparsity", sum_by_member(sparsity) * step.penalty)
