"""Llama 3.2 Vision: tiles of an image, which the LLM reads by cross-attention, not in slots. It is only looked at.

A head reads the states that the LLM would attend to, of every tile that is there. Answers are refused: transformers has
no seam there that takes the states of a tower that ran before. `generate` hands them on at every step, and the layers
append them to their cache again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.image_tokens import ImageTokens
from safevlm.backbones.row import Backbone


def _look(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    return model.model.vision_model(**tensors)


def _of_real_tiles(output: Any, images: ImageInputs) -> list[ImageTokens]:
    """Each image is filled up to the most tiles that there may be."""
    counts = [int(image.tensors["aspect_ratio_mask"].sum()) for image in images]
    pairs = zip(output.pooler_output, counts, strict=True)
    return [ImageTokens(tiles[0, :count].flatten(0, 1)) for tiles, count in pairs]


ROWS = (
    Backbone(
        "mllama",
        "Mllama",
        looks_only="its LLM reads images by cross-attention, and cannot be handed what a head has looked at",
        tower="model.vision_model",
        look=_look,
        projector_in_forward="model.multi_modal_projector",
        takes=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"),
        words_beyond=8,
        cut=_of_real_tiles,
    ),
)
