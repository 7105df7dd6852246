"""How many hits a yes/no prediction gets when the rows are shuffled: all shuffles at once, in closed form."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.features.blocks import blocks


def shuffled_hits(
    n_rows: int,
    n_active: Int[Tensor, " latents"],
    n_named: Int[Tensor, " latents"],
    n_hits: Int[Tensor, " latents"],
    share: float = 0.95,
) -> tuple[Float[Tensor, " latents"], Float[Tensor, " latents"]]:
    """Tail and quantile of the hypergeometric distribution (Fisher's exact test, one-sided).

    Of n_rows rows, n_active are active; the prediction names n_named of them. Under shuffling
    P(k hits) = C(n_active, k) C(n_rows - n_active, n_named - k) / C(n_rows, n_named).

    Returns:
        P(hits >= n_hits), and the smallest number of hits whose cumulative probability is at least `share`.
    """
    tails, quantiles = [], []
    for latents in blocks(len(n_active), 128):
        span = slice(latents.start, latents.stop)
        good, named, hits = (v[span, None].double() for v in (n_active, n_named, n_hits))
        k = torch.arange(int(torch.minimum(good, named).max()) + 1, device=good.device).double()
        possible = (k <= good) & (k <= named) & (named - k <= n_rows - good)
        log_p = _log_choose(good, k) + _log_choose(n_rows - good, named - k) - _log_choose(n_rows, named)
        p = torch.where(possible, log_p.exp(), 0)
        tails.append((p * (k >= hits)).sum(1).clamp(max=1))
        # A hair less than the share, so that a cumulative sum which equals it but for rounding counts as reaching it.
        quantiles.append((p.cumsum(1) < share - 1e-9).sum(1).double())
    return torch.cat(tails), torch.cat(quantiles)


def _log_choose(n: Tensor | int, k: Tensor) -> Tensor:
    """log of the binomial coefficient; without meaning outside 0 <= k <= n."""
    n = torch.as_tensor(n, dtype=k.dtype, device=k.device)
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
