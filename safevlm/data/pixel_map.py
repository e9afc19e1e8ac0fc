"""From an image's 8-bit values to what the model reads, as a map with a gradient.

Image processors are not differentiable, and every family has its own. At the size that the model reads, though, all of
them do the same: they copy values to other places (a square, tiles, patches) and scale each. Which value goes where is
found by asking the processor itself about images whose values tell their places, so that no family needs to be known.
The trap: a processor that still resizes at that size mixes values; the map is then not a copy, and is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safevlm.backbones import table
from safevlm.backbones.image_inputs import ImageInput, ImageInputs
from safevlm.data.pixels import Pixels, read_images

TOLERANCE = 1e-3
"""Of a model's input value; one step of 255 is about .015."""
VALUES = "pixel_values"


class PixelMap:
    """Of one processor and one size of image: (b, 3, h, w) in 0-1 → `Pixels`."""

    def __init__(self, processor: Any, height: int, width: int) -> None:
        """ValueError: the processor resizes images of this size."""
        self.processor = processor
        self.height, self.width = height, width
        black, white = (self._read(np.full((height, width, 3), value, np.uint8)) for value in (0, 255))
        self._template = black
        self.low = _values(black).double()
        self.gain = _values(white).double() - self.low
        self.index = self._index()
        self._check()

    @classmethod
    def of(cls, processor: Any, image: Image.Image) -> PixelMap:
        """The map of the size that the model reads this image at. ValueError: as above."""
        return cls(processor, *_size_of(processor, _only(read_images(processor, [[image]]))))

    def native(self, image: Image.Image) -> Tensor:
        """(3, h, w) uint8: the image as the model reads it, in 8 bits; scaled to the map's size where it is cut into
        more tiles than an image of that size."""
        values = self._values_of(image)
        if values.shape != self.low.shape:
            values = self._values_of(image.resize((self.width, self.height), Image.Resampling.BICUBIC))
        known = self.gain.abs() > TOLERANCE
        found = torch.full((3 * self.height * self.width,), 0.0, dtype=torch.double)
        found[self.index[known]] = ((values - self.low)[known] / self.gain[known]).clamp(0, 1)
        return (found * 255).round().to(torch.uint8).view(3, self.height, self.width)

    def __call__(self, images: Tensor) -> Pixels:
        """(b, 3, h, w) in 0-1, any of them with a gradient → what `encode_images` of the model takes."""
        low, gain = (each.to(images) for each in (self.low, self.gain))
        values = low + gain * images.flatten(1)[:, self.index.to(images.device)].view(-1, *self.low.shape)
        if isinstance(self._template, Tensor):
            return values
        fixed = self._template.to(images.device)
        return ImageInputs(replace(fixed, tensors={**fixed.tensors, VALUES: own}) for own in values)

    def _read(self, image: np.ndarray[Any, Any]) -> Tensor | ImageInput:
        return _only(read_images(self.processor, [[Image.fromarray(image)]]))

    def _values_of(self, image: Image.Image) -> Tensor:
        return _values(_only(read_images(self.processor, [[image]]))).double()

    def _index(self) -> Tensor:
        """Of every value of the model's input: which of the image's (3, h, w) it is."""
        places = np.arange(3 * self.height * self.width).reshape(3, self.height, self.width).transpose(1, 2, 0)
        found = torch.zeros_like(self.low)
        known = self.gain.abs() > TOLERANCE
        for digit in range(3):
            values = _values(self._read((places >> 8 * digit & 255).astype(np.uint8))).double()
            if values.shape != self.low.shape:
                raise ValueError(self._told())
            read = torch.where(known, (values - self.low) / torch.where(known, self.gain, 1.0), 0.0)
            found += (read * 255).round().clamp(0, 255) * 256**digit
        return found.long().clamp(0, places.size - 1)

    def _check(self) -> None:
        """ValueError: what was found does not foretell what becomes of another image."""
        image = np.random.default_rng(0).integers(0, 256, (self.height, self.width, 3), np.uint8)
        ours = self(torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255)
        theirs = _values(self._read(image)).double()
        if not torch.allclose(_values(_only(ours)).double(), theirs, rtol=0, atol=TOLERANCE):
            raise ValueError(self._told())

    def _told(self) -> str:
        return (
            f"the image processor ({type(self.processor).__name__}) resizes images of {self.width} x {self.height}, so "
            "that what it does has no gradient here"
        )


def _only(pixels: Pixels) -> Tensor | ImageInput:
    image: Tensor | ImageInput = pixels[0]
    return image


def _values(image: Tensor | ImageInput) -> Tensor:
    return image if isinstance(image, Tensor) else image.tensors[VALUES]


def _size_of(processor: Any, image: Tensor | ImageInput) -> tuple[int, int]:
    """(height, width) at which the model reads it."""
    if isinstance(image, Tensor):
        return image.shape[-2], image.shape[-1]
    backbone = table.of_processor(processor)
    assert backbone is not None
    return backbone.native_size(processor, image)
