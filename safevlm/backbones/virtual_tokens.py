"""Learned vectors anywhere in the prompt of any family, as if they were tokens of an image (`llava_patch`'s trick).

They take slots, and to the model they are words: it places them as words are placed, and adds nothing to them in
deeper layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava_patch import virtual_tokens
from safevlm.backbones.image_tokens import ImageTokens

Virtual = Sequence[tuple[Tensor, int]]
"""(k, d), and the index in front of which they stand."""


def insert(input_ids: Tensor, image_tokens: Sequence[Any], virtual: Virtual, image_token_id: int) -> tuple[Tensor, Any]:
    """(t,), what fills its slots image by image, vectors → (t + Σk,), and what fills all of its slots then.

    ValueError: as `llava_patch.virtual_tokens.insert`.
    """
    if not any(isinstance(own, ImageTokens) for own in image_tokens):
        features = torch.cat(list(image_tokens)) if image_tokens else None
        return virtual_tokens.insert(input_ids, features, virtual, image_token_id)

    def among(rows: Tensor, of: Virtual) -> tuple[Tensor, Tensor]:
        return virtual_tokens.insert(input_ids, rows, of, image_token_id)

    ids, tokens = among(torch.cat([own.tokens for own in image_tokens]), virtual)
    nothing = [(vectors.new_zeros(vectors.shape), at) for vectors, at in virtual]
    layers = zip(*(own.deep for own in image_tokens), strict=True)
    flags = [(vectors.new_zeros(len(vectors), 1), at) for vectors, at in virtual]
    _, of_image = among(torch.cat([own.is_of_image for own in image_tokens])[:, None].to(tokens.dtype), flags)
    return ids, ImageTokens(
        tokens, tuple(among(torch.cat(layer), nothing)[1] for layer in layers), of_image.squeeze(1).bool()
    )
