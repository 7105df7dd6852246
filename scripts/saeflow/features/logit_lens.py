"""What a direction in the residual stream adds to the logits, read off the unembedding (the logit lens)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def unembedding(model: nn.Module, d_in: int) -> Float[Tensor, "vocabulary d_in"] | None:
    """Rows that turn a residual vector into logits, the gain of the final normalisation multiplied in.

    The normalisation's division by the length of the whole vector is left out: it is no matter of one direction.

    Arguments:
        model: a causal language model.
        d_in: width of the directions.
    Returns:
        None where directions of this width are not in the residual stream.
    """
    head = model.get_output_embeddings().weight.float()
    if head.shape[1] != d_in:
        return None
    norm = _final_norm(model, d_in)
    if norm is None:
        return head
    gain = norm.weight.float().to(head.device)
    rows = head * (1 + gain if "Gemma" in type(norm).__name__ else gain)
    # A LayerNorm takes the mean out of what it normalises, an RMSNorm does not.
    return rows - rows.mean(1, keepdim=True) if isinstance(norm, nn.LayerNorm) else rows


def _final_norm(model: nn.Module, d_in: int) -> nn.Module | None:
    """The normalisation in front of the unembedding: the last child of the decoder that has one gain per coordinate."""
    gains = [
        child
        for child in model.base_model.children()
        if isinstance(getattr(child, "weight", None), Tensor) and tuple(child.weight.shape) == (d_in,)
    ]
    return gains[-1] if gains else None


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
