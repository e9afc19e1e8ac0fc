"""A change of the pixels, written as what the vision tower makes of it: one vector per patch, before its first layer.

The tower reads a patch through one matrix, most of whose singular values are small: whoever learns pixels one by one
moves some directions ten times faster than others, and whoever learns these vectors does not.

    v tower width · r, c rows and columns of patches · p pixels on the side of a patch
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llava_patch import fields, parts
from llava_patch.classes import Config, Model


def shape_of(config: Config) -> tuple[int, int, int]:
    """(r, c, v)."""
    side = fields.patches_per_side(config)
    return side, side, fields.tower_width(config)


def inverse_of(model: Model) -> Tensor:
    """(v, 3 p p): from a vector to the smallest change of a patch's pixels that makes it."""
    embeddings: Any = parts.vision_tower(model).embeddings
    weight: Tensor = embeddings.patch_embedding.weight
    return torch.linalg.pinv(weight.detach().float().flatten(1)).T.contiguous()


def pixels_of(vectors: Tensor, inverse: Tensor) -> Tensor:
    """(r, c, v), (v, 3 p p) → (3, r p, c p)."""
    side = round((inverse.shape[1] / 3) ** 0.5)
    blocks = (vectors @ inverse).unflatten(-1, (3, side, side))
    return blocks.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
