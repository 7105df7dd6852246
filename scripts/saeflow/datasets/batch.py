"""What a network reads at once, and which rows of its activations that gives."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A batch of an input.

    Arguments:
        items: images [n, 1, h, w], or token ids [n, context].
        rows: those of the batch's activations that are stored, by number: one of an image, one of each token.
        source: where each of these rows comes from: the columns of the input.
    """

    items: Tensor
    rows: Int[Tensor, " n_rows"]
    source: Int[Tensor, "n_rows columns"]
