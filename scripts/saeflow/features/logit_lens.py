"""What a direction in the residual stream adds to the logits, read off the unembedding (the logit lens)."""

import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeflow.config.language import Hook
from saeflow.models import direct_path

log = logging.getLogger(__name__)


def unembedding(model: nn.Module, d_in: int, hook: Hook | None = None) -> Float[Tensor, "vocabulary d_in"] | None:
    """Rows that turn a residual vector into logits: the unembedding, with what stands before and behind it as measured.

    The normalisation's division by the length of the whole vector is left out: it is no matter of one direction.

    Arguments:
        model: a causal language model.
        d_in: width of the directions.
        hook: where the directions are; the output of the last block if not given.
    Returns:
        in float32, on the CPU. None, and a line in the log that says why, where directions do not reach the logits by
        addition: outside the residual stream.
    """
    try:
        rows = direct_path.rows(model, hook)
        if rows.shape[1] != d_in:
            raise direct_path.DirectPathError(f"values have width {rows.shape[1]}, directions {d_in}")
    except direct_path.DirectPathError as reason:
        log.warning("no logit lens at %s: %s", hook.module if hook else "the last block", reason)
        return None
    return rows.cpu()


@torch.no_grad()
def extremes(
    directions: Float[Tensor, "n d"], rows: Float[Tensor, "vocabulary d"], k: int
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"], Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Tokens whose logit a direction raises and lowers most, with the change of the logit less its mean over tokens.

    Arguments:
        directions: decoder rows.
        rows: of `unembedding`.
        k: tokens on each side.
    Returns:
        tokens and changes of the k highest, descending, and of the k lowest, ascending.
    """
    k = min(k, len(rows))
    logits = directions.to(rows) @ rows.T
    logits -= logits.mean(1, keepdim=True)
    top, bottom = logits.topk(k, 1), (-logits).topk(k, 1)
    return top.indices.cpu(), top.values.cpu(), bottom.indices.cpu(), -bottom.values.cpu()
