"""Projected gradient ascent on the pixels of an image, through a frozen vision tower (Madry et al., arXiv 1706.06083).

What a tower takes are normalised pixels: (v - mean) / std of a pixel v in [0, 1], channel by channel. A bound of the
pixels is therefore another one in each channel there, and what is no pixel (v below 0 or above 1) is cut off. The scale
is asked of the image processor itself (`safevlm.data.pixel_map`).

    i images · b requests
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from safevlm.data import dense_pixels
from safevlm.data.pixel_map import PixelMap
from safevlm.data.pixels import read_singly

MOST = 255


@dataclass(frozen=True)
class PixelScale:
    """Where the pixels that a tower takes lie."""

    lowest: Tensor
    """(3, 1, 1): black."""
    highest: Tensor
    """(3, 1, 1): white."""

    @classmethod
    def of(cls, processor: Any) -> PixelScale:
        """Of a whole processor. ValueError: what it makes of images is not one image of one size each."""
        _, height, width = dense_pixels.shape_of(partial(read_singly, processor))
        found = PixelMap(processor, height, width)
        if not torch.equal(found.index.flatten(), torch.arange(found.index.numel())):
            raise ValueError("its image processor moves pixels to other places")
        low, high = (each.float().flatten(0, -3)[..., :1, :1] for each in (found.low, found.low + found.gain))
        return cls(low, high)

    def to(self, device: torch.device) -> PixelScale:
        """The same on another device."""
        return PixelScale(self.lowest.to(device), self.highest.to(device))

    def change(self, pixels: float) -> Tensor:
        """(3, 1, 1): so many steps of 0 to 255."""
        return (self.highest - self.lowest) * (pixels / MOST)


@dataclass(frozen=True)
class PixelAscent:
    """How far, in how many steps."""

    epsilon: float
    """Largest change of a pixel, on the scale of 0 to 255."""
    steps: int
    step_size: float
    """Of one step, on the same scale."""

    def __call__(self, images: Tensor, start: Tensor, scale: PixelScale, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """(i, 3, h, w) → images within the bound that make `loss` of them larger; it is a sum over images.

        `start`, of the same shape: where to start from, in bounds of -1 to 1. No weight gets a gradient, and no other
        process is waited for.
        """
        bound, step = scale.change(self.epsilon), scale.change(self.step_size)
        changed = _within(images, images + start.to(images) * bound, bound, scale)
        for _ in range(self.steps):
            changed.requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(loss(changed), changed)
            changed = _within(images, changed.detach() + step * slope.sign(), bound, scale)
        return changed


def _within(images: Tensor, changed: Tensor, bound: Tensor, scale: PixelScale) -> Tensor:
    near = torch.minimum(torch.maximum(changed, images - bound), images + bound)
    return torch.minimum(torch.maximum(near, scale.lowest), scale.highest)
