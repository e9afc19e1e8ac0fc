"""Images as a family's image processor leaves them: opaque to everybody else, cut image by image.

Families store pixels in different shapes (a square, tiles, flattened patches with a grid). Whoever stands between the
image processor and the model moves, cuts and joins them, and knows no shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageInput:
    """One image, prepared alone."""

    tensors: Mapping[str, Tensor]
    """What the image processor made of it, by the names that the model's `get_image_features` takes."""
    placeholder: str
    """What stands in the prompt in the place of its image token: all of its slots, and marks around them."""
    siblings: int = 1
    """Images of its request, itself included. LLaVA-OneVision cuts an image into tiles only when it is alone."""

    def to(self, device: torch.device | str, **options: Any) -> ImageInput:
        """The same on another device."""
        return replace(self, tensors={name: each.to(device, **options) for name, each in self.tensors.items()})


class ImageInputs(Sequence[ImageInput]):
    """The images of a batch, in order."""

    def __init__(self, images: Iterable[ImageInput] = ()) -> None:
        self._images = tuple(images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return ImageInputs(self._images[index]) if isinstance(index, slice) else self._images[index]

    def to(self, device: torch.device | str, **options: Any) -> ImageInputs:
        """The same on another device; `options` are those of `Tensor.to` (accelerate gives `non_blocking`)."""
        return ImageInputs(each.to(device, **options) for each in self._images)

    def split(self, most: int) -> list[ImageInputs]:
        """Runs of at most so many images."""
        return [self[start : start + most] for start in range(0, len(self), most)]

    @property
    def device(self) -> torch.device:
        """Where the first image lies. IndexError: there is none."""
        return next(iter(self._images[0].tensors.values())).device

    @property
    def placeholders(self) -> list[str]:
        """Of every image."""
        return [each.placeholder for each in self._images]


def join(parts: Sequence[ImageInputs]) -> ImageInputs:
    """All images of the parts, in order."""
    return ImageInputs(image for part in parts for image in part)
