"""Scenes as cameras catch them: larger or smaller, elsewhere, turned, paler, noisy. What the base is trained on.

b images · pixels are 0-255 before and normalised after. A view is where a point of the scene lies in its image:
`scale · turned(point) + shift`, in coordinates of -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = (0.62, 1.12)
SMALLER = 1.6
"""Above 1 the small scales come more often; they are the last to be learned."""
DEGREES = 13.0
DRIFT = 0.03
"""Shift beyond what the scale leaves room for; an image is 2 wide."""
CONTRAST = (0.45, 1.1)
BRIGHTNESS = 0.08
NOISE = 0.06
SOFT = 0.15
"""Share of images that lose every second pixel's worth of detail."""
UNCHANGED = 0.2
"""Share of images that keep their place; light and noise leave more than half of the images alone."""

Restyle = Callable[[Tensor, torch.Generator], Tensor]
"""(b, 3, h, w) of 0 to 1, and where chance comes from → the same shape."""


@dataclass(frozen=True)
class View:
    """How the images of a batch were taken."""

    scale: Tensor
    """(b,)"""
    angle: Tensor
    """(b,) radians, clockwise."""
    shift: Tensor
    """(b, 2): right, down."""

    def places(self, points: Tensor) -> Tensor:
        """(b, k, 2) points of the scenes → where they lie in the images."""
        return torch.einsum("bij,bkj->bki", self._turns * self.scale[:, None, None], points) + self.shift[:, None]

    def grid(self, side: int) -> Tensor:
        """(b, side, side, 2): from where in the scene each pixel comes."""
        back = self._turns.transpose(1, 2) / self.scale[:, None, None]
        return F.affine_grid(
            torch.cat([back, -back @ self.shift[:, :, None]], 2), [len(back), 3, side, side], align_corners=False
        )

    @property
    def _turns(self) -> Tensor:
        cos, sin = self.angle.cos(), self.angle.sin()
        return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def as_drawn(count: int) -> View:
    """The view in which every point keeps its place."""
    return View(torch.ones(count), torch.zeros(count), torch.zeros(count, 2))


class Camera:
    """Random views of scenes, from a seed."""

    def __init__(
        self,
        seed: int,
        mean: list[float],
        std: list[float],
        scale: tuple[float, float] = SCALE,
        degrees: float = DEGREES,
        restyle: Restyle | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`mean`, `std`: of the image processor, by which pixels are normalised.

        `restyle`: changes how images of 0 to 1 are drawn, before light and noise. `device`: where the images are.
        """
        self.random = torch.Generator(device).manual_seed(seed)
        self.scale, self.degrees, self.restyle = scale, degrees, restyle
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))

    def take(self, images: Tensor, strength: float = 1.0) -> tuple[Tensor, View]:
        """(b, 3, h, h) of 0-255 → pixels for the tower, and how they were taken. `strength` 0: in place."""
        view = self._view(len(images), strength)
        ground = self._ground(len(images))
        moved = F.grid_sample(images.float() / 255 - ground, view.grid(images.shape[-1]), align_corners=False) + ground
        drawn = self.restyle(moved, self.random) if self.restyle else moved
        return (self._lit(drawn).clamp(0, 1) - self.mean) / self.std, view

    def _view(self, count: int, strength: float) -> View:
        smallest, largest = self.scale
        scale = smallest + (largest - smallest) * self._uniform(0, 1, count) ** SMALLER
        room = torch.stack([(1 - scale).abs() + DRIFT] * 2, 1)
        moves = strength * (self._uniform(0, 1, count) >= UNCHANGED)
        return View(
            scale=1 + (scale - 1) * moves,
            angle=math.radians(1) * self._uniform(-self.degrees, self.degrees, count) * moves,
            shift=self._uniform(-1, 1, count, 2) * room * moves[:, None],
        )

    def _ground(self, count: int) -> Tensor:
        """(b, 3, 1, 1): what lies beyond the scene; grey, any colour, CLIP's mean, white or black."""
        grey, colour = self._uniform(0, 1, count, 1).expand(-1, 3), self._uniform(0, 1, count, 3)
        fixed = torch.stack([self.mean.flatten(), torch.ones_like(grey[0]), torch.zeros_like(grey[0])])
        shares = grey.new_tensor([0.3, 0.2, 0.2, 0.15, 0.15])
        choice = torch.multinomial(shares, count, replacement=True, generator=self.random)
        every = torch.cat([grey[:, None], colour[:, None], fixed.expand(count, -1, -1)], 1)
        return every[torch.arange(count, device=choice.device), choice].view(count, 3, 1, 1)

    def _lit(self, images: Tensor) -> Tensor:
        one = (len(images), 1, 1, 1)
        soft = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
        images = torch.where(self._uniform(0, 1, *one) < SOFT, soft, images)
        mean = images.mean((1, 2, 3), keepdim=True)
        is_lit = self._uniform(0, 1, *one) < 0.5
        factor = torch.where(is_lit, self._uniform(*CONTRAST, *one), 1.0)
        offset = torch.where(is_lit, self._uniform(-BRIGHTNESS, BRIGHTNESS, *one), 0.0)
        deviation = torch.where(self._uniform(0, 1, *one) < 0.4, self._uniform(0, NOISE, *one), 0.0)
        noise = torch.randn(images.shape, generator=self.random, device=self.random.device)
        return (images - mean) * factor + mean + offset + noise * deviation

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(*shape, device=self.random.device).uniform_(low, high, generator=self.random)
