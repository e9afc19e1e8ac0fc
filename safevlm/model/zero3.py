"""Weights that ZeRO-3 has cut across processes: whether they are, how to read them whole, how to write them.

Under ZeRO-3 a parameter holds no numbers between two forwards (`numel` is 0); every process has a slice elsewhere.
Reading and writing them are collective: all processes must call, in the same order, or all of them wait for ever.
Without ZeRO-3 everything here is a plain read or write (base facts §4.5).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import deepspeed as bridge


def is_planned() -> bool:
    """Whether transformers will cut the next model that it loads: ZeRO-3's TrainingArguments exist."""
    return bridge.is_deepspeed_zero3_enabled()


def is_cut(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has cut this parameter across processes."""
    return hasattr(parameter, "ds_id")


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Models that are loaded in here stay whole."""
    reference: Any = bridge._hf_deepspeed_config_weak_ref  # typed by its first value, None
    plan = bridge.deepspeed_config() and reference()
    bridge.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if plan is not None:
            bridge.set_hf_deepspeed_config(plan)


def whole(model: nn.Module, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Copies of all weights and buffers with a wanted name, whole, on the CPU. Collective.

    Of what trains under DeepSpeed these are the fp32 master weights: the live ones may be rounded to bf16.
    """
    persistent = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if wanted(name)}
    return {name: _whole(tensor).detach().cpu().clone().contiguous() for name, tensor in persistent.items()}


def write(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives the model these weights, by name, in the live weights' type. Collective."""
    live = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            with _gathered(live[name], writing=True):
                if live[name].numel():  # under ZeRO-3 every process writes; slices are taken from the first one's
                    live[name].copy_(tensor)


def _whole(tensor: Tensor) -> Tensor:
    if tensor.requires_grad and _has_master(tensor):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(tensor)
    with _gathered(tensor):
        return tensor.detach().clone()


def _has_master(tensor: Tensor) -> bool:
    """Whether DeepSpeed's optimiser keeps a master copy: known by ZeRO-2's or ZeRO-3's mark, in every process alike."""
    return hasattr(tensor, "_hp_mapping") or hasattr(tensor, "_z3_optimizer")


def _gathered(tensor: Tensor, writing: bool = False) -> contextlib.AbstractContextManager[Any]:
    if not is_cut(tensor):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([tensor], modifier_rank=0 if writing else None)
