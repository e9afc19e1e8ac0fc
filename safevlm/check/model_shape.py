"""A model as `safevlm.check.memory` sees it: sizes, read off its config and its parameters' shapes."""

from __future__ import annotations

from typing import Any

from torch import nn

from safevlm.check.memory import ModelShape
from safevlm.model import families
from safevlm.model.safety_modules import is_safety_name
from safevlm.training.prepare import trainable


def model_shape(config: Any, model: nn.Module, *, lora: bool, learns_through_llm: bool, runs_llm: bool) -> ModelShape:
    """The shape of `model`, prepared to train; it may be on the meta device. The flags are `ModelShape`'s."""
    sizes, safety = families.sizes_of(config), config.safety_config
    frozen = {name: weight.numel() for name, weight in model.named_parameters() if not weight.requires_grad}
    below = families.layout_of(config).lm_layers
    llm = sum(amount for name, amount in frozen.items() if below in name)
    ours = sum(amount for name, amount in frozen.items() if is_safety_name(name))
    has_head = safety.projector != "none"
    return ModelShape(
        llm=llm,
        other=sum(frozen.values()) - llm - ours,
        frozen_safety=ours,
        trained=sum(trainable(model).values()),
        layers=sizes.lm_layers,
        hidden=sizes.lm_width,
        intermediate=sizes.lm_intermediate,
        heads=sizes.lm_heads,
        vocabulary=sizes.vocabulary,
        tower_layers=sizes.tower_layers,
        tower_width=sizes.tower_width,
        tower_intermediate=sizes.tower_intermediate,
        patches=sizes.tower_positions,
        read_width=sizes.read_width,
        patches_per_read=sizes.patches_per_read,
        is_one_size=sizes.is_one_size,
        keeps_states=sizes.keeps_states,
        projector=safety.projector,
        projector_width=safety.projector_width if has_head else 0,
        projector_depth=safety.projector_depth if has_head else 0,
        features=safety.projector_tokens + safety.head_tokens if has_head else 0,
        lora=lora,
        learns_through_llm=learns_through_llm,
        runs_llm=runs_llm,
    )
