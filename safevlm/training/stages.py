"""What each stage trains. Three rows, one code path.

|                 | trained                                | frozen                        |
|-----------------|----------------------------------------|-------------------------------|
| stage1          | safety tokens, projector and head      | vision tower, projector, LLM  |
| stage2          | a LoRA on the LLM's linear layers      | all the rest                  |
| security_tensor | one tensor in front of the model       | the model                     |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from llava_patch import names
from safevlm.config import LoraSettings, TensorSettings
from safevlm.model import zero3
from safevlm.model.safe_llava import SafeLlava, is_safety_name
from safevlm.training.tensors import NAME, TensorLearner


@dataclass(frozen=True)
class Stage:
    trains: Callable[[str], bool]
    """Whether a parameter of this name trains."""
    adds: Literal["", "lora", "tensor"] = ""
    """What `prepare` puts on the model."""


STAGES = {
    "stage1": Stage(trains=is_safety_name),
    "stage2": Stage(trains=lambda name: ".lora_" in name, adds="lora"),
    "security_tensor": Stage(trains=NAME.__eq__, adds="tensor"),
}


def prepare(model: SafeLlava, stage: Stage, lora: LoraSettings, tensor: TensorSettings | None = None) -> Any:
    """Freezes and unfreezes; adds LoRA or tensor. What trains is float32: at lr 1e-5 bf16 weights hardly move."""
    add: dict[str, Callable[[], Any]] = {
        "": lambda: model,
        "lora": lambda: _with_lora(model, lora),
        "tensor": lambda: TensorLearner(model, tensor or TensorSettings()),
    }
    prepared = add[stage.adds]()
    for name, parameter in prepared.named_parameters():
        parameter.requires_grad = stage.trains(name)
        if parameter.requires_grad and not zero3.is_planned():
            parameter.data = parameter.data.float()
        elif parameter.requires_grad and not zero3.is_cut(parameter):
            parameter.data = parameter.data.to(model.dtype)  # ZeRO-3 wants one type and keeps fp32 masters itself
    if not any(parameter.requires_grad for parameter in prepared.parameters()):
        raise ValueError("nothing to train: this checkpoint has no safety modules; set model.safety in the recipe")
    return prepared


def trainable(model: nn.Module) -> dict[str, int]:
    """Names of the parameters that train, with their sizes."""
    return {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}


def _with_lora(model: SafeLlava, lora: LoraSettings) -> Any:
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
