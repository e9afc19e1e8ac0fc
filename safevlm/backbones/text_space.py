"""What a text space can be held against: of each image as a whole, what the tower hands to its own text side.

CLIP projects its CLS behind the last layernorm. SigLIP has no CLS: a head pools its patches, and most models that are
built on its tower leave that head out, so the patches are kept for whoever has it. Other towers have no text side.

    i images · p patches · w tower width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.row import Backbone


@dataclass(frozen=True)
class TextSide:
    """A kind of tower that was trained beside texts."""

    kind: str
    """`model_type` of the whole, text side included."""
    field: str
    """Of `ImagePass`: where `seen` is kept."""
    seen: Callable[[Any, Tensor], Tensor]
    """Tower, and its last hidden states (i, p, w) → what its text side reads."""


TEXT_SIDES: Mapping[str, TextSide] = {
    "clip_vision_model": TextSide("clip", "clip_cls", lambda tower, states: tower.post_layernorm(states[:, 0])),
    "siglip_vision_model": TextSide("siglip", "siglip_patches", lambda _, states: states),
}
"""By the tower's `model_type`."""


def side_of(backbone: Backbone, model: Any) -> TextSide | None:
    """None: the tower of this model has no text side."""
    if backbone.wholes is None:
        return None
    return TEXT_SIDES.get(model.get_submodule(backbone.tower).config.model_type)


def of_wholes(backbone: Backbone, model: Any, output: Any, images: ImageInputs) -> dict[str, Tensor]:
    """The fields of an `ImagePass` that a text space reads; empty: the tower has none."""
    side = side_of(backbone, model)
    if side is None or backbone.wholes is None:
        return {}
    rows = torch.tensor(backbone.wholes(images), device=output.last_hidden_state.device)
    return {side.field: side.seen(model.get_submodule(backbone.tower), output.last_hidden_state[rows])}
