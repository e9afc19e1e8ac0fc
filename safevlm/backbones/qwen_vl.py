"""Qwen-VL: an image is a run of flattened patches with a grid, and 2 x 2 of them become one token.

Qwen2.5-VL's raw patches come out in the order of its attention windows; the tokens of `pooler_output` do not.
"""

from __future__ import annotations

from typing import Any

from safevlm.backbones.image_inputs import ImageInput, ImageInputs
from safevlm.backbones.image_tokens import ImageTokens
from safevlm.backbones.row import LINEAR, Backbone


def _with_deep(output: Any, images: ImageInputs) -> list[ImageTokens]:
    deep = zip(*output.deepstack_features, strict=True)
    return [ImageTokens(tokens, own) for tokens, own in zip(output.pooler_output, deep, strict=True)]


def _size(processor: Any, image: ImageInput) -> tuple[int, int]:
    _, rows, columns = image.tensors["image_grid_thw"][0].tolist()
    side = processor.image_processor.patch_size
    return rows * side, columns * side


def _row(model_type: str, name: str, processor: str = "", **differing: Any) -> Backbone:
    return Backbone(
        model_type,
        name,
        processor=processor,
        tower="model.visual",
        between=(),
        takes=("pixel_values", "image_grid_thw"),
        positions=("image_grid_thw",),
        token_types="mm_token_type_ids",
        native_size=_size,
        **differing,
    )


DELTA_NET = r"linear_attn\.(in_proj_(qkv|z|b|a)|out_proj)"
"""The linear layers of Qwen3.5's attention without softmax, which three of four layers have."""
ROWS = (
    _row("qwen2_vl", "Qwen2VL"),
    _row("qwen2_5_vl", "Qwen2_5_VL"),
    _row("qwen3_vl", "Qwen3VL", cut=_with_deep),
    _row("qwen3_5", "Qwen3_5", processor="Qwen3VLProcessor", linear=rf"({LINEAR}|{DELTA_NET})"),
)
