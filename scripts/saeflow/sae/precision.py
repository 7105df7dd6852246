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
        ValueError: `bfloat16` on a GPU, whose own choice is tf32, or on a processor that would have to emulate it.
    """
    if precision == "float32":
        yield
        return
    if torch.device(device).type != "cpu":
        raise ValueError("precision: 'bfloat16' is for a CPU; on a GPU use compute.matmul_precision: tf32")
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        raise ValueError("precision: 'bfloat16' needs a processor with AVX512-BF16 or AMX; this one has neither")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
