"""How the matrices of a training are multiplied."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


@contextmanager
def matrix_products(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Products of float32 matrices in a precision, inside the context.

    In `bfloat16` each factor is rounded to 8 bits of mantissa, products are summed in float32 and the result is
    float32; nothing else of a training changes ("mixed precision", Micikevicius et al. 2018). `float32` leaves what the
    process has chosen.

    Raises:
        ValueError: `bfloat16` on a GPU, whose own choice is tf32, or on a processor that multiplies in float32 whatever
            it is asked.
    """
    if precision == "float32":
        yield
        return
    if torch.device(device).type != "cpu":
        raise ValueError("precision: 'bfloat16' is for a CPU; on a GPU use compute.matmul_precision: tf32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        if not _rounds():
            raise ValueError("precision: 'bfloat16' needs a processor with AMX; this one multiplies in float32")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rounds() -> bool:
    """Whether a product loses what bfloat16 cannot hold: asked of the product, because no flag of a processor tells."""
    fine = torch.full((64, 64), 1 + 2**-12)
    return not torch.equal(fine @ torch.eye(64), fine)
