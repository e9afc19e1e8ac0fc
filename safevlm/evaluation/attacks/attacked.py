"""Attacked images on their way through the guard, with a gradient; and the same images in other forms.

A detector that looks at views, changed versions or noisy copies of an image says itself what these are, by its method
`view_pixels`: pixels in, the pixels of all its looks out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from safevlm.data.pixel_map import PixelMap
from safevlm.model.image_features import VisionBatch

Looks = Callable[[Tensor], Tensor]
"""(b, 3, h, w) of 0-1 → (b, v, 3, s, s)."""


class AttackedBatch(VisionBatch):
    """A batch of requests with one image each."""

    def __init__(self, model: Any, pixel_map: PixelMap, shown: Tensor, words: Sequence[Callable[[], Tensor]]) -> None:
        """`shown`: (b, 3, h, w) of 0-1, of the map's size."""
        super().__init__(model, pixel_map(shown), [1] * len(shown), words, lambda chosen: iter(()))
        self.shown = shown
        self._map = pixel_map

    def again(self, looks: Looks) -> AttackedBatch:
        """The batch of all looks at every image, those of the first image first.

        ValueError: the model's processor resizes looks of this size.
        """
        views = looks(self.shown)
        words = [own for own in self._words for _ in range(views.shape[1])]
        return AttackedBatch(self._model, self._map_of(*views.shape[-2:]), views.flatten(0, 1), words)

    def _map_of(self, height: int, width: int) -> PixelMap:
        own = self._map
        return own if (height, width) == (own.height, own.width) else _map_of(own.processor, height, width)


@functools.lru_cache(maxsize=8)  # it is asked for at each step of an attack
def _map_of(processor: Any, height: int, width: int) -> PixelMap:
    return PixelMap.of(processor, Image.new("RGB", (width, height)))
