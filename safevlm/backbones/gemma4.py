"""Gemma 4: images of any shape as patches with positions, filled up to one number; 3 x 3 of them become one token.

Small models feed every layer of the LLM an embedding of its own, from one table as wide as there are layers.
"""

from __future__ import annotations

from typing import Any

from safevlm.backbones.image_inputs import ImageInput
from safevlm.backbones.row import LINEAR, Backbone


def _size(processor: Any, image: ImageInput) -> tuple[int, int]:
    columns, rows = (1 + image.tensors["image_position_ids"][0].amax(0)).tolist()  # filling stands at -1
    side = processor.image_processor.patch_size
    return rows * side, columns * side


PER_LAYER = ("model.language_model.embed_tokens_per_layer.", "model.language_model.per_layer_model_projection.")

ROWS = (
    Backbone(
        "gemma4",
        "Gemma4",
        between=("model.embed_vision",),
        takes=("pixel_values", "image_position_ids"),
        token_types="mm_token_type_ids",
        linear=rf"({LINEAR}|per_layer_input_gate|per_layer_projection)",
        wide_as_layers=PER_LAYER,
        native_size=_size,
    ),
)
