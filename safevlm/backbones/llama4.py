"""Llama 4: tiles of one size, then the whole image. The model projects what its tower gives inside `forward`.

transformers' image processor needs torchvision, so that one on PIL stands here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import split_to_tiles
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from safevlm.backbones import image_tokens
from safevlm.backbones.row import LINEAR, Backbone

Size = tuple[int, int]
"""Height and width."""


class Llama4ImageOptions(ImagesKwargs, total=False):
    """What the image processor can be told besides."""

    max_patches: int
    resize_to_max_canvas: bool


class Llama4ImageProcessor(PilBackend):
    """Tiles of an image, and behind them the whole of it where there are several."""

    resample = PILImageResampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 336, "width": 336}
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    max_patches = 16
    """Of tiles."""
    resize_to_max_canvas = False
    valid_kwargs = Llama4ImageOptions
    model_input_names = ["pixel_values"]

    def _preprocess(self, images: list[Any], *_: Any, **options: Any) -> BatchFeature:
        side, tiles, ratios = int(options["size"].height), [], []
        for image in images:
            canvas = _canvas(image.shape[-2:], side, options["max_patches"], options["resize_to_max_canvas"])
            room = canvas if options["resize_to_max_canvas"] else _room(image.shape[-2:], canvas, side)
            fitted = self._sized(image, _fitting(image.shape[-2:], room), options)
            below, beside = canvas[0] - fitted.shape[-2], canvas[1] - fitted.shape[-1]
            padded = np.pad(fitted, ((0, 0), (0, below), (0, beside)))
            rows, columns = canvas[0] // side, canvas[1] // side
            tiles.append(split_to_tiles(self._values(padded, options)[None], rows, columns)[0])
            if rows * columns > 1:
                tiles.append(self._values(self._sized(image, (side, side), options), options)[None])
            ratios.append([rows, columns])
        data = {"pixel_values": torch.cat(tiles), "aspect_ratios": torch.tensor(ratios)}
        return BatchFeature(data, tensor_type=options.get("return_tensors"))

    def _values(self, image: Any, options: dict[str, Any]) -> Tensor:
        if options["do_rescale"]:
            image = self.rescale(image, options["rescale_factor"])
        if options["do_normalize"]:
            image = self.normalize(image, options["image_mean"], options["image_std"])
        return torch.from_numpy(image).float()

    def _sized(self, image: Any, size: Size, options: dict[str, Any]) -> Any:
        return self.resize(image, SizeDict(height=size[0], width=size[1]), resample=options["resample"])


def _canvas(image: Size, side: int, most: int, is_greedy: bool) -> Size:
    """Of all rows and columns of at most so many tiles: those that leave the image largest, or nearest to its size."""
    counts = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    scales = {own: min(own[0] * side / image[0], own[1] * side / image[1]) for own in counts}
    larger = [scale for scale in scales.values() if scale >= 1]
    best = (max(larger) if is_greedy else min(larger)) if larger else max(scales.values())
    rows, columns = min((own for own in counts if scales[own] == best), key=math.prod)
    return rows * side, columns * side


def _room(image: Size, canvas: Size, side: int) -> Size:
    """An image that is larger than a tile is not enlarged."""
    return min(max(image[0], side), canvas[0]), min(max(image[1], side), canvas[1])


def _fitting(image: Size, room: Size) -> Size:
    """The largest size of the image's shape in there."""
    tall, wide = room[0] / image[0], room[1] / image[1]
    if wide < tall:
        return max(min(math.floor(image[0] * wide), room[0]), 1), room[1]
    return room[0], max(min(math.floor(image[1] * tall), room[1]), 1)


class Llama4Processor(transformers.Llama4Processor):
    """transformers' own, which says besides what fills the slots of an image: it is not what a prompt has there."""

    @property  # type: ignore[misc]  # transformers' can be set besides, which nobody does
    def image_token_ids(self) -> list[int | None]:
        """First the token of a slot."""
        return [self.tokenizer.convert_tokens_to_ids(self.img_patch_token)]


ROWS = (
    Backbone(
        "llama4",
        "Llama4",
        own_processor=Llama4Processor,
        own_image_processor=Llama4ImageProcessor,
        tower="vision_model",
        between=("multi_modal_projector",),
        projector_in_forward="multi_modal_projector",
        llm="language_model.model",
        linear=rf"({LINEAR}|feed_forward\.(shared_expert\.)?(gate|up|down)_proj)",
        cut=image_tokens.by_rows,
        merge=image_tokens.as_tensor,
    ),
)
