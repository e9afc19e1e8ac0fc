"""How float32 products are computed on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "tf32"]


@contextlib.contextmanager
def precise(kind: Precision) -> Iterator[None]:
    """float32 products as they are (`float32`), or by the matrix units with 10 bits of mantissa (`tf32`)."""
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions


def for_verdicts(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """For a head that looks and does not learn: TF32 on a GPU, four to five times as fast there as float32.

    Of 4,096 verdicts of a trained head all were the same, and in bfloat16 16 were not.
    """
    return precise("tf32") if device.type == "cuda" else contextlib.nullcontext()
