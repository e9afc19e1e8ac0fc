"""LLaVA-NeXT and LLaVA-OneVision: the whole image, and tiles of it in a higher resolution.

LLaVA-OneVision cuts an image into tiles only when it is its request's only one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safevlm.backbones import image_tokens, reading
from safevlm.backbones.image_inputs import ImageInput, ImageInputs
from safevlm.backbones.row import Backbone


def _tiles(images: ImageInputs) -> dict[str, Tensor]:
    """Images differ in the number of their tiles, so these stand one behind the other, without padding."""
    return {
        "pixel_values": torch.cat([image.tensors["pixel_values"].flatten(0, 1) for image in images]),
        "image_sizes": torch.cat([image.tensors["image_sizes"] for image in images]),
    }


def _tiles_of_the_only_image(images: ImageInputs) -> dict[str, Tensor]:
    wholes = torch.cat([_shown(image) for image in images])
    sizes = torch.cat([image.tensors["image_sizes"] for image in images])
    return {"pixel_values": wholes, "image_sizes": sizes, "batch_num_images": _requests(images)}


def _shown(image: ImageInput) -> Tensor:
    tiles = image.tensors["pixel_values"].flatten(0, 1)
    return tiles if image.siblings == 1 else tiles[:1]


def _requests(images: ImageInputs) -> Tensor:
    """Images of each request; a request's images stand together."""
    counts, at = [], 0
    while at < len(images):
        counts.append(images[at].siblings)
        at += counts[-1]
    return torch.tensor(counts)


NEWLINE = ("model.image_newline",)
"""A learned vector at the end of every row of tiles."""
ROWS = (
    Backbone(
        "llava_next",
        "LlavaNext",
        loose=NEWLINE,
        takes=("pixel_values", "image_sizes"),
        join=_tiles,
        wholes=lambda images: image_tokens.first_rows(image.tensors["pixel_values"].shape[1] for image in images),
    ),
    Backbone(
        "llava_onevision",
        "LlavaOnevision",
        loose=NEWLINE,
        takes=("pixel_values", "image_sizes", "batch_num_images"),
        read=reading.together,
        join=_tiles_of_the_only_image,
        wholes=lambda images: image_tokens.first_rows(len(_shown(image)) for image in images),
    ),
)
