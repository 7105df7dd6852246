"""What a latent does to the model's output: remove it where it is active, add it elsewhere, and compare with theory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.features.bank import Examples
from saeflow.features.blocks import blocks

Continue = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows classes"]]
"""From values at the hook point to logits: the rest of the model."""

PAIRS = (("ablation", "addition"), ("ablation", "direct"), ("addition", "direct"))


@dataclass(frozen=True)
class Effects:
    """Mean logit changes per latent and class, in logits. Rows of zeros for latents that never fire."""

    ablation: Float[Tensor, "d_sae classes"]
    """Logits(x - z_i d_i) - logits(x), over rows on which the latent fires; the SAE's error stays in."""
    addition: Float[Tensor, "d_sae classes"]
    """Logits(x + s_i d_i) - logits(x), over a sample of all rows; s_i is the latent's mean when active."""
    direct: Float[Tensor, "d_sae classes"]
    """s_i d_i J, with J the mean Jacobian of the logits at the hook point over the same sample."""
    flips: Float[Tensor, " d_sae"]
    """Share of the ablated rows whose predicted class changes; NaN where there are none."""
    size: Float[Tensor, " d_sae"]
    """Root mean square over classes of the centered `addition`."""
    random_size: Float[Tensor, " d_sae"]
    """The same for one random direction of the added vector's norm: what `size` has to beat."""

    def agreement(self) -> dict[str, Float[Tensor, " d_sae"]]:
        """Correlation over classes of each two of -ablation, addition and direct; NaN where one is constant."""
        parts = {"ablation": -self.ablation, "addition": self.addition, "direct": self.direct}
        return {f"{a}_{b}": correlation(parts[a], parts[b]) for a, b in PAIRS}

    def pooled_agreement(self) -> dict[str, float]:
        """The same correlations over all latents and classes at once, each latent's mean over the classes removed."""
        parts = {"ablation": -self.ablation, "addition": self.addition, "direct": self.direct}
        flat = {name: (v - v.mean(1, keepdim=True)).flatten() for name, v in parts.items()}
        return {f"{a}_{b}": float(correlation(flat[a][None], flat[b][None])) for a, b in PAIRS}


def correlation(a: Float[Tensor, "rows n"], b: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """Pearson correlation of each row; NaN where one side is constant."""
    a, b = (v.double() - v.double().mean(1, keepdim=True) for v in (a, b))
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > 0, (a * b).sum(1) / norms, torch.nan).to(torch.float32)


def mean_jacobian(
    logits_from: Continue, x: Float[Tensor, "rows d_in"], batch_rows: int = 4096
) -> Float[Tensor, "d_in classes"]:
    """Mean over the rows of d logits / d x: one backward pass per class."""
    total = None
    for rows in x.split(batch_rows):
        rows = rows.detach().requires_grad_(True)
        with torch.enable_grad():
            sums = logits_from(rows).sum(0)
            columns = [torch.autograd.grad(s, rows, retain_graph=True)[0].sum(0) for s in sums]
        part = torch.stack(columns, 1)
        total = part if total is None else total + part
    return total / len(x)


@torch.no_grad()
def logit_effects(
    logits_from: Continue,
    decoder: Float[Tensor, "d_sae d_in"],
    x: Float[Tensor, "n_rows d_in"],
    active: Examples,
    strength: Float[Tensor, " d_sae"],
    *,
    n_added: int,
    seed: int,
    batch_rows: int = 8192,
) -> Effects:
    """Causal effect of every latent on the logits. Cost: d_sae * (k + 2 n_added) passes through the rest of the model.

    Arguments:
        logits_from: the rest of the model; what it computes with other rows must not matter.
        decoder: W_dec of the SAE, rows d_i in the units of x.
        x: values at the hook point.
        active: k rows of x on which each latent fires, and its activations z_i there.
        strength: s_i, the latents' mean activation when active.
        n_added: rows to which the decoder rows are added, at most; drawn from x.
        seed: of these rows and of the random directions.
    """
    d_sae, d_in = decoder.shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(x), generator=generator)[:n_added].sort().values.to(x.device)
    noise = torch.randn(d_sae, d_in, generator=generator).to(decoder)
    step = strength.to(decoder)[:, None] * decoder
    noise = noise / noise.norm(dim=1, keepdim=True) * step.norm(dim=1, keepdim=True)

    ablation, flips = _ablate(logits_from, decoder, x, active, batch_rows)
    addition, random = (_add(logits_from, s, x[drawn], batch_rows) for s in (step, noise))
    sizes = [(e - e.mean(1, keepdim=True)).square().mean(1).sqrt() for e in (addition, random)]
    return Effects(ablation, addition, step @ mean_jacobian(logits_from, x[drawn]), flips, *sizes)


def _ablate(
    logits_from: Continue, decoder: Tensor, x: Tensor, active: Examples, batch_rows: int
) -> tuple[Tensor, Tensor]:
    """Mean logit change and share of changed answers."""
    d_sae, k = active.rows.shape
    used = torch.unique(active.rows[active.present])
    clean = torch.cat([logits_from(x[rows]) for rows in used.split(batch_rows)]) if len(used) else None
    changes, flips = [], []
    for latents in blocks(d_sae, max(1, batch_rows // k)):
        span = slice(latents.start, latents.stop)
        present = active.present[span]
        which, rows = present.nonzero()[:, 0], active.rows[span][present]
        if not len(rows):
            classes = 0 if clean is None else clean.shape[1]
            changes.append(x.new_zeros(len(latents), classes or logits_from(x[:1]).shape[1]))
            flips.append(x.new_full((len(latents),), torch.nan))
            continue
        before = clean[torch.searchsorted(used, rows)]
        after = logits_from(x[rows] - active.values[span][present][:, None] * decoder[span][which])
        count = present.sum(1)
        sums = x.new_zeros(len(latents), before.shape[1]).index_add_(0, which, after - before)
        changed = (after.argmax(1) != before.argmax(1)).to(x.dtype)
        changes.append(sums / count.clamp(min=1)[:, None])
        flips.append(x.new_zeros(len(latents)).index_add_(0, which, changed) / count)
    return torch.cat(changes), torch.cat(flips)


def _add(logits_from: Continue, steps: Tensor, x: Tensor, batch_rows: int) -> Tensor:
    """Mean logit change over the rows of x when each step in turn is added to all of them."""
    clean = logits_from(x)
    changes = []
    for latents in blocks(len(steps), max(1, batch_rows // len(x))):
        moved = x + steps[latents.start : latents.stop, None]
        logits = logits_from(moved.flatten(0, 1)).unflatten(0, moved.shape[:2])
        changes.append((logits - clean).mean(1))
    return torch.cat(changes)
