"""The parts of a LLaVA in memory: vision tower, projector, LLM."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_patch import names
from llava_patch.classes import Model


def vision_tower(model: Model) -> PreTrainedModel:
    """The vision encoder: (b, 3, h, w) → an output with `last_hidden_state` (b, 1 + patches, v)."""
    return cast(PreTrainedModel, model.get_submodule(names.VISION_TOWER))


def tower_state(model: Model) -> dict[str, Tensor]:
    """The vision tower's weights by their own names, not copied; `llava_patch.fingerprint` compares them."""
    return vision_tower(model).state_dict()


def projector(model: Model) -> nn.Module:
    """The stock projector: (b, p, v) patches → (b, n, d) image tokens, with any extra ones of `image_tokens.attach`."""
    return model.get_submodule(names.PROJECTOR)


def language_model(model: Model) -> PreTrainedModel:
    """The LLM without its lm_head."""
    return cast(PreTrainedModel, model.get_submodule(names.LANGUAGE_MODEL))


def lm_layers(model: Model) -> nn.ModuleList:
    """The LLM's decoder layers; empty in a model that was loaded without its LLM."""
    return cast(nn.ModuleList, model.get_submodule(names.LM_LAYERS.removesuffix(".")))


def has_lm(model: Model) -> bool:
    """Whether the model can answer: False when it was loaded without the LLM's layers."""
    return len(lm_layers(model)) > 0
