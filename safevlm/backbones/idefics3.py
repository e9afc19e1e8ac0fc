"""Idefics3 and SmolVLM: tiles of an image and the whole, as images of one sample.

The trap: the model drops tiles whose values are all exactly zero, since it fills up samples with such. A grey tile can
be one when its processor normalises to zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.row import Backbone

TENSORS = ("pixel_values", "pixel_attention_mask")


def _samples(images: ImageInputs) -> dict[str, Tensor]:
    """Each image as a sample of its own, filled up to the most tiles with zeros, which the model leaves out."""
    most = max(image.tensors["pixel_values"].shape[1] for image in images)
    return {name: torch.cat([_filled(image.tensors[name], most) for image in images]) for name in TENSORS}


def _filled(tiles: Tensor, most: int) -> Tensor:
    """(1, tiles, …) → (1, most, …)."""
    return pad(tiles, (0, 0) * (tiles.dim() - 2) + (0, most - tiles.shape[1]))


def _row(model_type: str, name: str, **differing: Any) -> Backbone:
    return Backbone(
        model_type,
        name,
        tower="model.vision_model",
        between=("model.connector",),
        llm="model.text_model",
        takes=TENSORS,
        join=_samples,
        **differing,
    )


ROWS = (_row("idefics3", "Idefics3"), _row("smolvlm", "SmolVLM", needs=("num2words",)))
