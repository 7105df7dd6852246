"""Hierarchical SAEs: parents, each with children in a low-rank subspace of its own; stacked over seeds and arms.

Muchane et al. 2025, "Incorporating Hierarchical Semantics in Sparse Autoencoder Architectures" (2506.01197).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.sae import kernels

LEAK = 0.01
"""Slope below zero of the children's activations, as in the authors' code."""
PARENT_MATRICES = ("encoder", "decoder")
CHILD_MATRICES = ("down", "up", "child_encoder", "child_decoder")
DECODER = ("decoder", "up", "child_decoder", "bias")
"""What stage A of a teacher's schedule keeps as it is."""


class Codes(NamedTuple):
    """What is active, of a stack.  K parents a row, each with one child where there are children."""

    parents: Int[Tensor, "m b k"]
    values: Float[Tensor, "m b k"]
    """z_j >= 0; a parent at 0 is not active."""
    children: Int[Tensor, "m b k"] | None
    child_values: Float[Tensor, "m b k"] | None


class Reconstruction(NamedTuple):
    """What the parents give, the bias with them, and what the children add; none in a flat SAE."""

    top: Float[Tensor, "m b d"]
    below: Float[Tensor, "m b d"] | None

    @property
    def full(self) -> Float[Tensor, "m b d"]:
        """x_hat."""
        return self.top if self.below is None else self.top + self.below


@dataclass
class Pattern:
    """Active latents of a stack's rows as a sparse matrix; sorted by latent once, for all gradients of a step."""

    latents: Int[Tensor, "rows q"]
    n_latents: int
    _sorted: kernels.ByLatent | None = field(default=None, repr=False)

    @property
    def offsets(self) -> Tensor:
        rows, q = self.latents.shape
        return torch.arange(0, rows * q + 1, q, device=self.latents.device)

    def sum_rows(self, values: Float[Tensor, "rows q"], table: Float[Tensor, "rows d"]) -> Float[Tensor, "latents d"]:
        """For each latent, the sum of value times table row over the rows that have it."""
        if self._sorted is None:
            rows = torch.arange(len(self.latents), device=self.latents.device).repeat_interleave(self.latents.shape[1])
            self._sorted = kernels.by_latent(rows, self.latents.reshape(-1), self.n_latents)
        ordered = values.reshape(-1).index_select(0, self._sorted.order)
        return kernels.sum_rows(self._sorted, ordered, table, 0, self.n_latents)


class _Products(torch.autograd.Function):
    """y[r, i] = x[r] . W[latents[r, i]]; x has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pattern = pattern
        return kernels.products(pattern.offsets, pattern.latents.reshape(-1), x, W).view(pattern.latents.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        (x,) = ctx.saved_tensors
        return None, ctx.pattern.sum_rows(g, x), None


class _Decode(torch.autograd.Function):
    """x_hat[r] = sum_i values[r, i] W[latents[r, i]]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W)
        ctx.pattern = pattern
        return kernels.decode(pattern.offsets, pattern.latents.reshape(-1), values.reshape(-1), W)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        values, W = ctx.saved_tensors
        pattern, g = ctx.pattern, g.contiguous()
        of_values = kernels.products(pattern.offsets, pattern.latents.reshape(-1), g, W).view(values.shape)
        return of_values, pattern.sum_rows(values, g), None


class _SquaredErrors(torch.autograd.Function):
    """Sums over a member's rows of |x - top - below|^2 and |x - top|^2: one pass over large arrays for each of both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        of_top = x - top
        error = of_top if below is None else of_top - below
        ctx.save_for_backward(of_top, error)
        ctx.has_children = below is not None
        return tuple(torch.linalg.vecdot(e.flatten(1), e.flatten(1)) for e in (error, of_top))

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_top: Tensor) -> tuple[None, Tensor, Tensor | None]:
        of_top, error = ctx.saved_tensors
        of_below = error * (-2 * g[:, None, None])
        return None, of_below.addcmul(of_top, g_top[:, None, None], value=-2), of_below if ctx.has_children else None


@dataclass
class HierarchicalSAEs:
    """x_hat = b + sum over j in TopK of [z_j D_j + U_j D'_j z'_j]; z = relu(E x + c), z' = Top-1(leaky(E'_j P_j x)).

    A stack of m SAEs of one shape. Decoder rows D_j, the rows of U_j and the columns of D'_j have length 1. Without
    children it is a flat TopK SAE.

    Arguments:
        parameters: `encoder` and `decoder` [m, p, d], `encoder_bias` [m, p], `bias` [m, d], and with children `down`
            (P) and `up` (U) [m, p, s, d], `child_encoder` and `child_decoder` [m, p, c, s].
        k: active parents per row.
    """

    parameters: dict[str, Tensor]
    k: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """m, p, d."""
        return tuple(self.parameters["encoder"].shape)

    @property
    def has_children(self) -> bool:
        return "down" in self.parameters

    def _pattern(self, parents: Int[Tensor, "m b k"], width: int = 1) -> Pattern:
        """Latents `parents`, or the `width` rows of each parent's subspace."""
        m, p, _ = self.shape
        flat = parents + torch.arange(m, device=parents.device)[:, None, None] * p
        rows = flat[..., None] * width + torch.arange(width, device=parents.device)
        return Pattern(rows.reshape(m * parents.shape[1], -1), m * p * width)

    def encode(self, x: Float[Tensor, "m b d"]) -> Codes:
        """Active parents of each row, in ascending order, and the child of each."""
        return self._encode(x)[0]

    def _encode(self, x: Tensor) -> tuple[Codes, Pattern, Pattern | None]:
        m, b, d = x.shape
        parameters = self.parameters
        with torch.no_grad():
            z = torch.baddbmm(parameters["encoder_bias"][:, None], x, parameters["encoder"].mT)
            parents = z.topk(self.k, dim=2, sorted=False).indices.sort(dim=2).values
        pattern = self._pattern(parents)
        flat = x.reshape(m * b, d)
        # Once more for the active ones alone: their gradient then costs no dense product.
        z = _Products.apply(flat, parameters["encoder"].view(-1, d), pattern)
        z = z + parameters["encoder_bias"].view(-1)[pattern.latents]
        values = torch.relu(z).view(m, b, self.k)
        if not self.has_children:
            return Codes(parents, values, None, None), pattern, None
        rank = parameters["down"].shape[2]
        inner = self._pattern(parents, rank)
        low = _Products.apply(flat, parameters["down"].view(-1, d), inner).view(-1, rank)
        encoders = parameters["child_encoder"].flatten(0, 1)[pattern.latents.reshape(-1)]
        child = torch.einsum("ncs,ns->nc", encoders, low)
        child = torch.nn.functional.leaky_relu(child, LEAK)
        child_values, children = child.max(dim=1)
        active = (values > 0).to(x.dtype).view(-1)
        shape = (m, b, self.k)
        return Codes(parents, values, children.view(shape), (child_values * active).view(shape)), pattern, inner

    def decode(self, codes: Codes) -> Reconstruction:
        """x_hat of codes."""
        pattern = self._pattern(codes.parents)
        inner = self._pattern(codes.parents, self.parameters["up"].shape[2]) if self.has_children else None
        return self._decode(codes, pattern, inner)

    def _decode(self, codes: Codes, pattern: Pattern, inner: Pattern | None) -> Reconstruction:
        m, b, k = codes.values.shape
        parameters = self.parameters
        d = parameters["bias"].shape[1]
        top = _Decode.apply(codes.values.reshape(m * b, k), parameters["decoder"].view(-1, d), pattern)
        top = top.view(m, b, d) + parameters["bias"][:, None]
        if inner is None:
            return Reconstruction(top, None)
        c, rank = parameters["child_decoder"].shape[2:]
        chosen = pattern.latents.reshape(-1) * c + codes.children.reshape(-1)
        weights = parameters["child_decoder"].view(-1, rank)[chosen] * codes.child_values.reshape(-1, 1)
        below = _Decode.apply(weights.view(m * b, k * rank), parameters["up"].view(-1, d), inner)
        return Reconstruction(top, below.view(m, b, d))

    def forward(self, x: Float[Tensor, "m b d"]) -> tuple[Codes, Reconstruction]:
        """Codes and reconstruction; patterns are shared between both."""
        codes, pattern, inner = self._encode(x)
        return codes, self._decode(codes, pattern, inner)

    def member(self, i: int) -> "HierarchicalSAEs":
        """One SAE of the stack, as a stack of one."""
        return HierarchicalSAEs({name: tensor[i : i + 1].detach() for name, tensor in self.parameters.items()}, self.k)


class Losses(NamedTuple):
    """Terms of each member.  Shape [m] each."""

    reconstruction: Tensor
    """Mean over rows of |x - x_hat|^2."""
    top: Tensor
    """The same for the parents alone."""
    sparsity: Tensor
    """Mean over rows of sum |z| + sum |z'|."""
    biorthogonality: Tensor
    """Mean over i != j of |E_i . D_j|."""
    causal: Tensor
    """Mean over parents and subspace rows of cos(E_j, P_j[r])^2: a parent reads nothing that its children read.  On
    encoder rows, so that it has a gradient while the decoder is kept as it is."""


def losses(saes: HierarchicalSAEs, x: Float[Tensor, "m b d"], codes: Codes, x_hat: Reconstruction) -> Losses:
    """The terms; their weights are the trainer's.  In whitened coordinates the dot product is the causal one."""
    parameters = saes.parameters
    m, p, _ = saes.shape
    rows = x.shape[1]
    sparsity = codes.values.sum((1, 2))
    causal = x.new_zeros(m)
    if saes.has_children:
        sparsity = sparsity + codes.child_values.abs().sum((1, 2))
        products = torch.einsum("mpd,mpsd->mps", parameters["encoder"], parameters["down"])
        lengths = parameters["encoder"].square().sum(2)[..., None] * parameters["down"].square().sum(3)
        causal = (products.square() / lengths.clamp(min=1e-12)).mean((1, 2))
    error, top = _SquaredErrors.apply(x, x_hat.top, x_hat.below)
    cross = parameters["encoder"] @ parameters["decoder"].mT
    off = cross.abs().sum((1, 2)) - cross.diagonal(dim1=1, dim2=2).abs().sum(1)
    return Losses(
        reconstruction=error / rows,
        top=top / rows,
        sparsity=sparsity / rows,
        biorthogonality=off / max(1, p * (p - 1)),
        causal=causal,
    )
