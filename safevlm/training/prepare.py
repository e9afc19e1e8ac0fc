"""A model made ready for a stage: what trains is float32 and gets gradients, the rest is frozen."""

from __future__ import annotations

from typing import Any

from torch import nn

from safevlm.config import Recipe
from safevlm.model import zero3
from safevlm.model.safe_llava import SafeLlava
from safevlm.training.stage import Stage


def prepare(model: SafeLlava, stage: Stage, recipe: Recipe) -> Any:
    """The model to train, with what the stage adds. What trains is float32: at lr 1e-5 bf16 weights hardly move.

    ValueError when nothing would train.
    """
    prepared = stage.add(model, recipe)
    for name, parameter in prepared.named_parameters():
        parameter.requires_grad = stage.trains(name) and stage.reaches(name, recipe)
        if parameter.requires_grad and not zero3.is_planned():
            parameter.data = parameter.data.float()
        elif parameter.requires_grad and not zero3.is_cut(parameter):
            parameter.data = parameter.data.to(model.dtype)  # ZeRO-3 wants one type and keeps fp32 masters itself
    if not any(parameter.requires_grad for parameter in prepared.parameters()):
        raise ValueError(
            "nothing to train: this checkpoint has no safety modules that the loss reaches; set model.safety in the "
            "recipe, or give a term of loss a weight"
        )
    return prepared


def trainable(model: nn.Module) -> dict[str, int]:
    """Names of the parameters that train, with their sizes."""
    return {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
