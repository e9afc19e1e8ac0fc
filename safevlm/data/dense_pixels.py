"""Images that are one tensor (3, h, w) each, all of one shape: what one change of all images is added to.

LLaVA's are always. Those of another family are, where its image processor brings every image to one size and cuts none
into tiles; it is asked itself, with images of different shapes.

    i images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.data.pixel_map import VALUES
from safevlm.data.pixels import Pixels

Shape = tuple[int, int, int]
"""Channels, height and width."""
Read = Callable[[Sequence[Image.Image]], Pixels]
"""Images, each a request's only one → what the model reads."""
TRIALS = ((64, 48), (48, 64), (200, 200))
"""Width and height of images that must all become one (3, h, w)."""


def checked(shape: Shape | None, read: Read | None = None) -> Shape:
    """The shape of every image, as the model's config says it, where that is what the processor makes.

    ValueError: None, images differ in shape; or the processor makes something else of them.
    """
    if shape is None:
        raise ValueError("images of this family are tiles or patches of varying number")
    found = shape if read is None else shape_of(read)
    if found != shape:
        raise ValueError(f"the processor makes images of {found}, the model takes {shape}")
    return shape


def shape_of(read: Read) -> Shape:
    """Of every image. ValueError: what becomes of them is not one image of one size each."""
    made = [read([Image.new("RGB", size)]) for size in TRIALS]
    shapes = {tuple(tensor_of(each).shape) for each in made}
    if len(shapes) > 1 or len(shape := next(iter(shapes))) != 4 or shape[:2] != (1, 3):
        raise ValueError(
            f"images become {', '.join(map(str, sorted(shapes)))}, not one (3, height, width) each, of one size"
        )
    return shape[1], shape[2], shape[3]


def tensor_of(images: Pixels) -> Tensor:
    """(i, 3, h, w)."""
    return torch.cat([each.tensors[VALUES] for each in images]) if isinstance(images, ImageInputs) else images


def with_tensor(images: Pixels, pixels: Tensor) -> Pixels:
    """The same images with other pixels (i, 3, h, w)."""
    if not isinstance(images, ImageInputs):
        return pixels
    rows = zip(images, pixels.split(1), strict=True)
    return ImageInputs(replace(each, tensors={**each.tensors, VALUES: own}) for each, own in rows)


def plus(images: Pixels, change: Tensor) -> Pixels:
    """`change` (3, h, w) added to each of them."""
    pixels = tensor_of(images)
    return with_tensor(images, pixels + change.to(pixels))
