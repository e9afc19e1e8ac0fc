"""Images and words → what a family's model reads, by its own processor and its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInput


def one_by_one(processor: Any, images: Sequence[Image]) -> list[ImageInput]:
    """Each image on its own, so that no image changes another one's tensors."""
    return [_read(processor, [[image]])[0] for image in images]


def together(processor: Any, images: Sequence[Image]) -> list[ImageInput]:
    """Images that are cut otherwise when a request has several."""
    return _read(processor, [list(images)]) if images else []


def _read(processor: Any, requests: list[list[Image]]) -> list[ImageInput]:
    """The images of one request."""
    options = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt")
    made, placeholders = processor._process_images(requests, **options["images_kwargs"])
    count = len(placeholders)
    tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
    room = slot(processor) * getattr(processor, "learned_tokens", 0)
    return [
        ImageInput({name: _of(value, index, count) for name, value in tensors.items()}, room + placeholder, count)
        for index, placeholder in enumerate(placeholders)
    ]


def _of(value: Tensor, index: int, count: int) -> Tensor:
    """One image's rows of a tensor; the whole of a request's only image."""
    return value if count == 1 else value[index : index + 1]


def slot(processor: Any) -> str:
    """The token that fills an image's slots, which some families write otherwise where an image is meant."""
    token: str = processor.tokenizer.convert_ids_to_tokens(processor.image_token_ids[0])
    return token


def has_one_size(image_processor: Any) -> bool:
    """Whether every image is brought to the same size, whatever it was; else to its own, or to tiles besides."""
    size = image_processor.size or {"longest_edge": None}  # none: it is the patches that are bounded
    return not hasattr(image_processor, "image_grid_pinpoints") and "longest_edge" not in size


def size_of_values(processor: Any, image: ImageInput) -> tuple[int, int]:
    """(height, width) of an image, or of its first tile."""
    height, width = image.tensors["pixel_values"].shape[-2:]
    return height, width
