"""Whether a model's predictions depend on tokens that come later: measured, whatever the model calls itself.

Two contexts with the same first tokens, side by side in one batch, give the same logits there if the model is causal.
Rounding may differ with what else is in a batch (experts get their tokens in groups): by how much, another batch tells.
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

_LENGTH = 8  # tokens of a context
_ROUNDING = 10.0  # times the rounding seen elsewhere
_SHARE = 1e-4  # of the change that the tokens make behind them. Causal models: 0 or rounding; encoders: above 2e-3


@torch.no_grad()
def looks_ahead(model: nn.Module, ids: Int[Tensor, " n"], length: int = _LENGTH) -> bool | None:
    """Whether logits change when a later token does.

    Arguments:
        model: whose forward takes token ids and returns `logits`.
        ids: of tokens to read, on the device of the model's embedding; several that differ.
        length: most tokens that it can read, at least 2.
    Returns:
        None where it cannot be told: the weights have no values, or the logits do not depend on what the model reads.
    """
    if ids.is_meta:
        return None
    length = min(length, _LENGTH)
    seen = length // 2
    # Three contexts that differ from place `seen` on: a rounding that tips a choice of experts hardly does so twice.
    steps = torch.arange(length, device=ids.device)
    contexts = torch.stack([ids[(steps * len(ids) // length + i * len(ids) // 3) % len(ids)] for i in range(3)])
    contexts[:, :seen] = contexts[0, :seen]
    logits = model(contexts, use_cache=False).logits
    others = model(contexts[:1].expand(3, -1), use_cache=False).logits
    rounding = _furthest(logits[0], others[0])
    before = min(_furthest(logits[0, :seen], logits[i, :seen]) for i in (1, 2))
    behind = max(_furthest(logits[0, seen:], logits[i, seen:]) for i in (1, 2))
    if not behind > rounding:  # NaN as well
        return None
    return before > max(_ROUNDING * rounding, _SHARE * behind)


def _furthest(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())
