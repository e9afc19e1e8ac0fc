"""A LoRA on the LLM's linear layers and nothing else (methods §1.4)."""

from __future__ import annotations

import re
from typing import Any

from safevlm.config import LoraSettings
from safevlm.model import families
from safevlm.model.safe_llava import SafeLlava
from safevlm.training.prepare import trainable


def with_lora(model: SafeLlava, lora: LoraSettings, *, autocast: bool = False) -> Any:
    """The model wrapped by PEFT. `autocast`: it will only run under autocast, which casts what a layer reads by itself.

    ValueError when the LoRA is on other layers than the LLM's.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = families.layout_of(model.config).lora_targets
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=targets)
    wrapped = get_peft_model(model, config)
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trainable(wrapped)}
    stray = [name for name in adapted if not re.fullmatch(targets, name)]
    if stray or not adapted:
        raise ValueError(f"the LoRA landed on {stray or 'nothing'}; expected only the LLM's linear layers")
    layers: list[Any] = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        # PEFT would bring the input to the LoRA's float32, drop out there, and autocast bring it back again: 10 % of a
        # step at 7B and batch 8
        layer.cast_input_dtype_enabled = not autocast
    return wrapped
