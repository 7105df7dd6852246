"""What part of the input a latent reads: three patterns per latent, and tests of how well each explains it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.features.bank import Examples
from saeflow.features.blocks import blocks, dense
from saeflow.sae.codes import Codes

NAMES = ("gradient", "gradient_input", "haufe")

Hook = Callable[[Float[Tensor, "images 1 h w"]], Float[Tensor, "images d_in"]]
"""From images to the activation vectors that the SAE reads."""


@dataclass(frozen=True)
class PatternScores:
    """How good a pattern [d_sae, pixels] is; NaN for latents that never fire."""

    keep_r2: Float[Tensor, " d_sae"]
    """Deletion test: share of the pre-activation's variance that survives when only the strongest pixels are kept."""
    smoothness: Float[Tensor, " d_sae"]
    """Moran's I: 1 for large areas of one sign, 0 for noise."""
    top_cosine: Float[Tensor, " d_sae"]
    """Cosine with the mean of the top examples less the mean image."""
    off_energy: Float[Tensor, " d_sae"]
    """Share of the pattern's squared values on pixels that no training image lights."""


def haufe(codes: Codes, images: Float[Tensor, "n_rows 1 h w"], block: int = 512) -> Float[Tensor, "d_sae pixels"]:
    """Activation pattern cov(image, z_i) / var(z_i), in intensity per unit of activation; zero for a constant latent.

    Haufe et al. 2014, "On the interpretation of weight vectors of linear models in multivariate neuroimaging", eq. 6.
    Cost: one product [d_sae, rows] x [rows, pixels].
    """
    x = images.flatten(1)
    x = x - x.mean(0)
    covariance = torch.cat([dense(codes, latents).T @ x / len(x) for latents in blocks(codes.d_sae, block)])
    zero, values = torch.zeros(codes.d_sae, dtype=torch.float64, device=x.device), codes.values.double()
    mean, square = (zero.index_add(0, codes.indices.long(), v) / len(x) for v in (values, values**2))
    variance = (square - mean**2).to(x.dtype)[:, None]
    return torch.where(variance > 0, covariance / variance, 0)


def gradients(
    hook: Hook,
    encoder: Float[Tensor, "d_in d_sae"],
    images: Float[Tensor, "n_rows 1 h w"],
    examples: Examples,
    baseline: Float[Tensor, " pixels"],
    batch_images: int = 4096,
) -> tuple[Float[Tensor, "d_sae pixels"], Float[Tensor, "d_sae pixels"]]:
    """Gradient of a latent's pre-activation with respect to the pixels, and gradient x (input - baseline).

    Both are means over the latent's examples, zero where it has none. The derivative of the pre-activation with respect
    to the hook point is the latent's encoder column, so one backward pass of a batch of (latent, example) pairs
    serves them all. Cost: forward and backward of d_sae * k images, k examples per latent.

    Arguments:
        hook: differentiable.
        encoder: W_enc of the SAE.
        images: what the rows of `examples` count.
        examples: firing rows of each latent.
        baseline: the image that counts as no input: the mean image, with which the deletion test fills too. On a
            black one the product could not show a latent that fires because a pixel is dark.
    """
    d_sae, k = examples.rows.shape
    gradient = torch.zeros(d_sae, images[0].numel(), dtype=images.dtype, device=images.device)
    product = torch.zeros_like(gradient)
    for latents in blocks(d_sae, max(1, batch_images // k)):
        span = slice(latents.start, latents.stop)
        present = examples.present[span]
        x = images[examples.rows[span][present]].requires_grad_(True)
        which = present.nonzero()[:, 0]
        with torch.enable_grad():
            score = (hook(x) * encoder.T[span][which]).sum()
        (slope,) = torch.autograd.grad(score, x)
        share = present.to(x.dtype) / present.sum(1, keepdim=True).clamp(min=1)
        weight = torch.zeros(len(latents), len(which), dtype=x.dtype, device=x.device)
        weight[which, torch.arange(len(which), device=x.device)] = share[present]
        gradient[span] = weight @ slope.flatten(1)
        product[span] = weight @ (slope.flatten(1) * (x.detach().flatten(1) - baseline))
    return gradient, product


def strongest(pattern: Float[Tensor, "d_sae pixels"], keep_share: float) -> Bool[Tensor, "d_sae pixels"]:
    """The share of the pixels, one at least, at which |pattern| is highest; among equals the lower pixel."""
    n_kept = max(1, round(keep_share * pattern.shape[1]))
    order = torch.argsort(pattern.abs(), dim=1, descending=True, stable=True)[:, :n_kept]
    return torch.zeros_like(pattern, dtype=torch.bool).scatter_(1, order, True)


def probes(n_rows: int, examples: Examples, seed: int) -> Examples:
    """Images of the deletion test: each latent's own examples, then as many random rows, the same for all latents.

    The values are of the examples alone; the random rows' are left at 0.
    """
    d_sae, k = examples.rows.shape
    drawn = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))[:k].to(examples.rows.device)
    rows = torch.cat([examples.rows, drawn.expand(d_sae, -1)], 1)
    return Examples(rows, torch.nn.functional.pad(examples.values, (0, len(drawn))))


@torch.no_grad()
def keep_r2(
    masks: Bool[Tensor, "kinds d_sae pixels"],
    hook: Hook,
    encoder: Float[Tensor, "d_in d_sae"],
    images: Float[Tensor, "n_rows 1 h w"],
    before: Float[Tensor, "n_rows d_in"],
    fill: Float[Tensor, " pixels"],
    tests: Examples,
    batch_images: int = 4096,
) -> Float[Tensor, "kinds d_sae"]:
    """Deletion test: squared correlation of a latent's pre-activation before and after most pixels are replaced.

    The pre-activation, because a threshold or the competition of other latents can silence a latent on every altered
    image, and then all patterns alike score 0.

    Arguments:
        masks: pixels to keep, per kind of pattern.
        encoder: W_enc of the SAE; a bias does not change the correlation.
        images: what the rows of `tests` count: images that the patterns were not made from.
        before: what `hook` makes of them.
        fill: value of the replaced pixels, the mean training image.
        tests: images per latent.
    Returns:
        r^2 in [0, 1]; 0 if the pre-activation after deletion does not vary. Cost: kinds * d_sae * k passes.
    """
    kinds, d_sae, _ = masks.shape
    k = tests.rows.shape[1]
    found = torch.empty(kinds, d_sae, dtype=torch.float32, device=images.device)
    for latents in blocks(d_sae, max(1, batch_images // (kinds * k))):
        span = slice(latents.start, latents.stop)
        rows, columns = tests.rows[span].clamp(min=0), encoder.T[span, :, None]
        altered = torch.where(masks[:, span, None], images[rows].flatten(2), fill)
        after = hook(altered.view(-1, *images.shape[1:])).view(kinds, len(latents), k, -1)
        a, b = ((values @ columns)[..., 0] for values in (before[rows], after))
        found[:, span] = squared_correlation(a.expand_as(b), b, tests.present[span].expand_as(b))
    return found


def squared_correlation(
    a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch n"], present: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """Squared Pearson correlation over the entries that are present; 0 where one side is constant."""
    weight = present.double()
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    a, b = ((v.double() - (v.double() * weight).sum(-1, keepdim=True) / count) * weight for v in (a, b))
    power = (a * a).sum(-1) * (b * b).sum(-1)
    return torch.where(power > 0, (a * b).sum(-1) ** 2 / power, 0).to(torch.float32)


def smoothness(pattern: Float[Tensor, "d_sae pixels"], shape: tuple[int, int]) -> Float[Tensor, " d_sae"]:
    """Moran's I over horizontal and vertical neighbours, in about [-1, 1]; NaN for a constant pattern.

    I = (N / W) sum_(a,b) p_a p_b / sum_a p_a^2 with p centered, over the W neighbouring pairs of N pixels
    (Moran 1950, "Notes on continuous stochastic phenomena").
    """
    p = pattern.double() - pattern.double().mean(1, keepdim=True)
    grid = p.unflatten(1, shape)
    pairs = (grid[:, 1:] * grid[:, :-1]).sum((1, 2)) + (grid[..., 1:] * grid[..., :-1]).sum((1, 2))
    h, w = shape
    n_pairs = (h - 1) * w + h * (w - 1)
    power = (p * p).sum(1)
    return torch.where(power > 0, h * w / n_pairs * pairs / power, torch.nan).to(torch.float32)


def top_cosine(
    pattern: Float[Tensor, "d_sae pixels"], images: Float[Tensor, "n_rows 1 h w"], top: Examples
) -> Float[Tensor, " d_sae"]:
    """Cosine of a pattern with the mean of the top examples less the mean image; NaN where either is zero."""
    flat = images.flatten(1)
    mean = flat.mean(0)
    scores = torch.full((len(pattern),), torch.nan, dtype=torch.float32, device=pattern.device)
    for latents in blocks(len(pattern), 256):
        span = slice(latents.start, latents.stop)
        present = top.present[span]
        shown = (flat[top.rows[span].clamp(min=0)] - mean) * present[..., None]
        difference = shown.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
        norms = difference.norm(dim=1) * pattern[span].norm(dim=1)
        scores[span] = torch.where(norms > 0, (difference * pattern[span]).sum(1) / norms, torch.nan)
    return scores


def off_energy(pattern: Float[Tensor, "d_sae pixels"], lit: Bool[Tensor, " pixels"]) -> Float[Tensor, " d_sae"]:
    """Share of a pattern's energy on pixels that are not lit; NaN for a zero pattern."""
    energy = pattern.double() ** 2
    total = energy.sum(1)
    return torch.where(total > 0, energy[:, ~lit].sum(1) / total, torch.nan).to(torch.float32)
