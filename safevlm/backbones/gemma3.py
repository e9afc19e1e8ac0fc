"""Gemma 3: a square of 256 tokens for each image. Pan-and-scan, off by default, adds crops of it."""

from __future__ import annotations

from safevlm.backbones import image_tokens
from safevlm.backbones.row import Backbone

ROWS = (
    Backbone(
        "gemma3",
        "Gemma3",
        token_types="token_type_ids",
        is_one_square=True,
        cut=image_tokens.by_rows,
        merge=image_tokens.as_tensor,
        wholes=lambda images: image_tokens.first_rows(len(image.tensors["pixel_values"]) for image in images),
    ),
)
