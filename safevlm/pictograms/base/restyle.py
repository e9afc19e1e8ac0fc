"""Images drawn otherwise: other colours, grey, other tones, only outlines, lines around what had none, bent a little.

A tower that is to read a style that it never saw has to learn shapes, not how five sets of emojis are coloured.

b images, of 0 to 1
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GREY, MIXED, TONED, OUTLINED, EDGED, FLAT = 0.15, 0.5, 0.4, 0.12, 0.25, 0.25
"""Shares of the images that are changed so; several changes can meet."""
BEND = 0.07
"""Of a point, at most; an image is 2 wide."""
KNOTS = 4
"""Of the bending, on a side."""
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])


def restyle(images: Tensor, random: torch.Generator) -> Tensor:
    """(b, 3, h, w) → the same shape."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(*shape, device=images.device).uniform_(low, high, generator=random)

    def some(share: float) -> Tensor:
        return (uniform(0, 1, len(images)) < share).nonzero()[:, 0]

    images = _bent(images, uniform(-BEND, BEND, len(images), 2, KNOTS, KNOTS)).clamp(0, 1)
    if len(rows := some(MIXED)):
        mix = torch.eye(3, device=images.device) + uniform(-0.5, 0.5, len(rows), 3, 3)
        mix = mix / mix.sum(2, keepdim=True).clamp(min=0.4)
        images[rows] = torch.einsum("bij,bjhw->bihw", mix, images[rows]).clamp(0, 1)
    if len(rows := some(TONED)):
        images[rows] = images[rows] ** uniform(-0.8, 0.8, len(rows), 3, 1, 1).exp()
    if len(rows := some(FLAT)):
        images[rows] = (images[rows] * 4).round() / 4
    if len(rows := some(EDGED)):
        images[rows] = (images[rows] - uniform(0.3, 1.0, len(rows), 1, 1, 1) * _edges(images[rows])).clamp(0, 1)
    if len(rows := some(OUTLINED)):
        images[rows] = (0.95 - 1.2 * _edges(images[rows])).clamp(0, 1).expand(-1, 3, -1, -1)
    if len(rows := some(GREY)):
        images[rows] = images[rows].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return images


def _edges(images: Tensor) -> Tensor:
    """(b, 1, h, w): how much the light changes, 0 to 1."""
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, torch.stack([SOBEL, SOBEL.T])[:, None].to(grey.device)).norm(dim=1, keepdim=True).clamp(0, 1)


def _bent(images: Tensor, knots: Tensor) -> Tensor:
    """Every point a little elsewhere, its neighbours with it."""
    side = images.shape[-1]
    shift = F.interpolate(knots, size=(side, side), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    line = (torch.arange(side, device=images.device) + 0.5) / side * 2 - 1
    grid = torch.stack([line.expand(side, -1), line[:, None].expand(-1, side)], 2) + shift
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
