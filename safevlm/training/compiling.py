"""torch.compile for the LLM's layers, one by one: a repeated block is compiled once and not 32 times.

On a GPU a LoRA's step is bound by many small kernels (norms, rotations, dropout, casts, sums); compiled, they become
few.
"""

from __future__ import annotations

from torch import nn

from safevlm.model import loading, zero3


def compile_layers(model: nn.Module) -> None:
    """Each of the LLM's layers is compiled where it stands, when it first runs; names and weights stay as they are.

    ValueError under ZeRO-3.
    """
    if zero3.is_planned():
        raise ValueError("run.compile: ZeRO-3 fetches weights in the middle of a layer; use --run.deepspeed zero2")
    for layer in loading.inner_of(model).lm_layers:
        layer.compile()
