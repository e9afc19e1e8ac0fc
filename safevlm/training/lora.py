"""A LoRA on the LLM's linear layers and nothing else (methods §1.4)."""

from __future__ import annotations

import re
from typing import Any

from llava_patch import names
from safevlm.config import LoraSettings
from safevlm.model.safe_llava import SafeLlava
from safevlm.training.prepare import trainable


def with_lora(model: SafeLlava, lora: LoraSettings) -> Any:
    """The model wrapped by PEFT. ValueError when the LoRA is on other layers than the LLM's."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=names.LORA_TARGETS
    )
    wrapped = get_peft_model(model, config)
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trainable(wrapped)}
    stray = [name for name in adapted if not re.fullmatch(names.LORA_TARGETS, name)]
    if stray or not adapted:
        raise ValueError(f"the LoRA landed on {stray or 'nothing'}; expected only the LLM's linear layers")
    return wrapped
