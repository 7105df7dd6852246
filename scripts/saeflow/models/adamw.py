"""AdamW of stacked networks."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# The fused kernel rounds what is left over after whole vectors unlike the rest; 16 floats are a CPU's widest vector.
_LANES = 16


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) of stacked parameters, by torch's fused kernel.

    Called without `torch.optim`, whose first optimizer imports the compiler: 4 s of every job.
    """

    def __init__(self, parameters: Sequence[Tensor], weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self.values = _alike(parameter.detach() for parameter in parameters)
        self.means = [torch.zeros_like(value) for value in self.values]
        self.squares = [torch.zeros_like(value) for value in self.values]
        self.count = torch.zeros((), device=self.values[0].device)

    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        self.count += 1
        torch._fused_adamw_(
            *(
                self.values,
                _alike(g.contiguous() for g in gradients),
                self.means,
                self.squares,
                [],
                [self.count] * len(self.values),
            ),
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def packed(shapes: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Zeros, and views of them in these shapes: as one parameter, or its gradient, they cost one call of the kernel.

    Returns:
        zeros [1, n], n a multiple of a CPU's widest vector; the views.
    """
    sizes = [math.prod(shape) for shape in shapes]
    whole = like.new_zeros(1, -(-sum(sizes) // _LANES) * _LANES)
    parts = whole[0, : sum(sizes)].split(sizes)
    return whole, [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _alike(stacked: Iterable[Tensor]) -> list[Tensor]:
    """Tensors of which no member's place in the stack decides how it is rounded: stacks of whole vectors, or rows."""
    return [rows for tensor in stacked for rows in (tensor.unbind() if tensor[0].numel() % _LANES else (tensor,))]
