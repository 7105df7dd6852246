"""Latents that stopped firing: who they are, and how they are brought back."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.sae.kernels import top_k

# Preactivations of dead latents that are worked on at a time: what the cache holds.
_CHUNK_NUMBERS = 1 << 21


class FiringCounter:
    """Activation vectors since each latent last fired.

    Arguments:
        m, d_sae: members and latents.
        dead_after: vectors without firing after which a latent counts as dead.
    """

    def __init__(self, m: int, d_sae: int, dead_after: int, device: torch.device | str) -> None:
        self.since = torch.zeros(m, d_sae, dtype=torch.int64, device=device)
        self.dead_after = dead_after

    def update(self, fired: Bool[Tensor, "m d_sae"], batch_size: int) -> None:
        """Count one batch."""
        self.since.add_(batch_size).masked_fill_(fired, 0)

    @property
    def dead(self) -> Bool[Tensor, "m d_sae"]:
        return self.since >= self.dead_after


class DeadLatents:
    """The dead latents of m members, and their preactivations on the current batch.

    Arguments:
        dead: which latents are dead.  Shape [m, d_sae].
        k: most of them that the AuxK loss uses per activation vector; d_in / 2 in the paper.
        coefficients: weight of the AuxK loss.  Shape [m].
    """

    def __init__(self, dead: Bool[Tensor, "m d_sae"], k: int, coefficients: Float[Tensor, " m"]) -> None:
        counts = dead.sum(1)
        self.n = int(counts.max())
        self.d_sae = dead.shape[1]
        # Members with fewer dead latents than another are filled up with living ones, which `valid` takes out again.
        self.index: Int[Tensor, "m n"] = (
            dead.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, : self.n]
        )
        self.valid: Bool[Tensor, "m n"] = torch.arange(self.n, device=dead.device) < counts[:, None]
        self.index, order = self.index.sort(dim=1)
        self.valid = self.valid.gather(1, order)
        self.ragged = int(counts.min()) < self.n
        self.k = min(k, self.n)
        self.coefficients = coefficients
        self.preactivations: Float[Tensor, "m b n"] = coefficients.new_empty(0)

    @property
    def flat(self) -> Int[Tensor, " m_n"]:
        """Flattened latents member * d_sae + f, ascending."""
        members = torch.arange(self.index.shape[0], device=self.index.device)
        return (self.index + members[:, None] * self.d_sae).view(-1)

    def start(self, x: Float[Tensor, "m b d_in"]) -> None:
        """Make room for a batch."""
        if self.preactivations.shape[:2] != x.shape[:2]:
            self.preactivations = x.new_empty(*x.shape[:2], self.n)

    def read(self, p: Float[Tensor, "m c d_sae"], start: int) -> None:
        """Keep the dead latents' share of some rows' preactivations."""
        target = self.preactivations[:, start : start + p.shape[1]]
        if p.shape[0] == 1:
            torch.index_select(p[0], 1, self.index[0], out=target[0])
        else:
            torch.gather(p, 2, self.index[:, None].expand(-1, p.shape[1], -1), out=target)


@dataclass
class Extra:
    """Gradients of dead latents.

    Arguments:
        latents: flattened, ascending.  Shape [k].
        rows: gradients of rows of W_dec and W_enc_T.  Shape [k, d_in].
        preactivations: gradients summed over the batch.  Shape [k].
        loss: of each member, weighted.  Shape [m].
    """

    latents: Int[Tensor, " k"]
    rows: dict[str, Float[Tensor, "k d_in"]]
    preactivations: Float[Tensor, " k"]
    loss: Float[Tensor, " m"]


def auxk(
    dead: DeadLatents,
    error: Float[Tensor, "m b d_in"],
    x: Float[Tensor, "m b d_in"],
    centered: Float[Tensor, "m b d_in"],
    W_dec: Float[Tensor, "m d_sae d_in"],
) -> Extra:
    """AuxK: dead latents learn what x_hat misses.

    L_aux = coefficient * mean |x|^2 * (mean |e - z_aux W_dec|^2 / mean |e|^2);  e = x - x_hat held fixed, z_aux the k
    largest preactivations of dead latents.  Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix
    A.2; both losses there are divided by the mean square of their targets, here both are in units of x.

    Preactivations are taken as they are, not rectified: a latent that is below zero everywhere must get a gradient.
    Only columns of dead latents are worked on.

    Arguments:
        error: x_hat - x.
        centered: x - b_dec.
    """
    m, b, d = error.shape
    latents = dead.flat
    W = W_dec.view(-1, d).index_select(0, latents).view(m, -1, d)
    dW_dec, dW_enc_T, sums = torch.zeros_like(W), torch.zeros_like(W), W.new_zeros(m, dead.n)
    loss = W.new_zeros(m)
    scale = dead.coefficients * x.square().sum((1, 2)) / error.square().sum((1, 2)).clamp(min=torch.finfo(x.dtype).tiny)
    step = max(1, _CHUNK_NUMBERS // (m * dead.n)) if x.device.type == "cpu" else b
    for start in range(0, b, step):
        rows = slice(start, start + step)
        z, unused = _largest(dead, rows)
        g = torch.baddbmm(error[:, rows], z, W)
        loss += g.square().sum((1, 2))
        g *= (2 / b) * scale[:, None, None]
        dz = torch.bmm(g, W.mT)
        if unused is not None:
            dz.masked_fill_(unused, 0)
        dW_dec.baddbmm_(z.mT, g)
        dW_enc_T.baddbmm_(dz.mT, centered[:, rows])
        sums += dz.sum(1)
    gradients = {"W_dec": dW_dec.view(-1, d), "W_enc_T": dW_enc_T.view(-1, d)}
    return Extra(latents, gradients, sums.view(-1), scale * loss / b)


def _largest(dead: DeadLatents, rows: slice) -> tuple[Tensor, Tensor | None]:
    """z_aux [m, c, n] of some rows, and where it is left out."""
    p = dead.preactivations[:, rows]
    if dead.k == dead.n and not dead.ragged:
        return p, None
    candidates = p.masked_fill(~dead.valid[:, None], -torch.inf) if dead.ragged else p
    # A member with fewer than k dead latents uses all of them: its bound is -inf.
    bound = top_k(candidates.reshape(-1, dead.n), dead.k)[0].amin(1).view(*p.shape[:2], 1)
    unused = candidates < bound
    if dead.ragged:
        unused |= ~dead.valid[:, None]
    return p.masked_fill(unused, 0), unused


@torch.no_grad()
def resample(
    dead: Bool[Tensor, " d_sae"],
    error: Float[Tensor, "b d_in"],
    centered: Float[Tensor, "b d_in"],
    W_enc_T: Float[Tensor, "d_sae d_in"],
    length: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, " k"], Float[Tensor, "k d_in"], Float[Tensor, "k d_in"]]:
    """Re-initialise dead latents as activation vectors that are poorly reconstructed.

    A vector is drawn with probability proportional to its squared loss; the decoder row becomes its direction, the
    encoder row the same, shorter. Bricken et al. 2023, "Towards Monosemanticity", appendix. The draw is from the
    current batch, so no more latents than it has rows are revived at a time.

    Arguments:
        length: of the new encoder rows, relative to the mean of the living ones.
    Returns:
        latents, their rows of W_dec and of W_enc_T.
    """
    latents = dead.nonzero().squeeze(1)[: centered.shape[0]]
    weights = error.square().sum(1).square().double().cpu()
    drawn = torch.multinomial(weights, latents.numel(), generator=generator).to(centered.device)
    rows = torch.nn.functional.normalize(centered.index_select(0, drawn), dim=1)
    living = W_enc_T[~dead]
    typical = living.norm(dim=1).mean() if living.numel() else W_enc_T.norm(dim=1).mean()
    return latents, rows, rows * (length * typical)
