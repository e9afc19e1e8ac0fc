"""The frozen LLM in 4 or 8 bits, by bitsandbytes: nf4 (QLoRA's) or int8. Only ever in memory, never on disk.

The LLM's linear layers are packed; tower, projector, safety modules, embeddings and lm_head stay as they are. The trap:
bitsandbytes takes every linear layer that its skip list does not name, matches names from the start of the full path,
and a list of one's own replaces the default, which spares lm_head (base facts §4.4). `check` looks at what came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from safevlm.config import Quantization
from safevlm.model.layout import LLAVA, Layout

OURS = ("safety_projector", "safety_head")
"""What of ours has linear layers too and must keep them."""
PACKED: Mapping[str, str] = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}
"""bitsandbytes' class of a packed layer."""


class QuantizationError(ValueError):
    """Something cannot be quantised here, or was not quantised as asked."""


def arguments(
    kind: Quantization, dtype: torch.dtype, device: torch.device | None = None, layout: Layout = LLAVA
) -> dict[str, Any]:
    """What `from_pretrained` needs to pack the LLM while it loads; nothing for `none`.

    `layout`: where the model has its LLM. `dtype` is the type to compute in; `device` is where the weights are packed
    and stay (none: the CPU).
    """
    check_possible(kind)
    if kind == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if kind == "nf4":
        how = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    else:
        how = {"load_in_8bit": True}
    config = BitsAndBytesConfig(**how, llm_int8_skip_modules=kept(layout))
    return {"quantization_config": config, "device_map": {"": _place(device or torch.device("cpu"))}}


def kept(layout: Layout) -> list[str]:
    """Modules with linear layers that stay as they are; names from the start of the full path."""
    return [*layout.never_packed, *OURS]


def settle(model: PreTrainedModel, packing: Mapping[str, Any], layout: Layout = LLAVA) -> None:
    """After loading with `arguments`: checks what was packed, takes off the notes that would outlive it."""
    if not packing:
        return
    check(model, "nf4" if packing["quantization_config"].load_in_4bit else "int8", layout)
    for module in model.modules():
        # saved, they would pack the un-quantised base again wherever the checkpoint is loaded or merged
        for note in ("quantization_config", "_is_quantized"):
            vars(getattr(module, "config", model.config)).pop(note, None)
    unmarked: Any = model
    unmarked.is_quantized = False  # else the Trainer refuses stage 1, since safety modules are no adapter


def check(model: nn.Module, kind: Quantization, layout: Layout = LLAVA) -> None:
    """QuantizationError unless exactly the linear layers of the LLM are packed, as `kind` says.

    Routers of experts are linear layers of a class of their own, which is not packed.
    """
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    packed = {name for name, found in classes.items() if found in PACKED.values()}
    wanted = {
        name
        for name, module in model.named_modules()
        if name.startswith(layout.packed_below) and (type(module) is nn.Linear or name in packed)
    }
    problems = {
        "packed that must not be": packed - wanted,
        "not packed": wanted - packed,
        f"packed, but not as {kind}": {name for name in packed if classes[name] != PACKED[kind]},
    }
    for what, layers in problems.items():
        if layers:
            raise QuantizationError(f"quantize {kind}: {len(layers)} layers {what}: {', '.join(sorted(layers)[:3])}")
    if not packed:
        raise QuantizationError(f"quantize {kind}: this model has no linear layer below {layout.packed_below} to pack")


def _place(device: torch.device) -> torch.device:
    """With its number, which accelerate compares: under torchrun each process has a GPU of its own."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def check_possible(kind: Quantization) -> None:
    """QuantizationError: an unknown kind, or one that does not work here."""
    if kind not in get_args(Quantization):
        raise QuantizationError(f"quantize={kind!r} is unknown; one of {list(get_args(Quantization))}")
    if kind == "none":
        return
    if is_deepspeed_zero3_enabled():
        raise QuantizationError(
            f"quantize {kind}: ZeRO-3 cuts weights that bitsandbytes packs, which does not work together; use "
            "--run.deepspeed zero2, or no quantisation"
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise QuantizationError(f"quantize {kind}: bitsandbytes is missing; pip install -e '.[quant]'") from error
