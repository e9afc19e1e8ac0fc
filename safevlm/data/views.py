"""Views: other looks at the same image, each a square that a detector sees like an image of its own.

A table of small functions, `VIEWS`. Each one is there twice: of a PIL image, as the guard looks, and of a tensor of
pixels, differentiable, for whoever attacks the guard with its own gradient (`view_pixels`). Both do the same to 8 bits.

    trimmed        without a border of one colour; all other views are taken of what it leaves
    tile:3         one of nine overlapping tiles of half the width and height, three in a row
    left, top, …   halves, drawn out to a square again
    middle         the middle, at 70 percent of each side
    padded         the whole at 70 percent of each side, on the colour that LLaVA pads with
    stretched      darkest and brightest value at 0 and 255
    inverted       colours inverted
    turned:15      turned by so many degrees, counter-clockwise

The trap: a processor that cuts the middle out of an image that is no square would cut a view's margins off, and an
attacker would know where. Every view is scaled to a square, so that all of it is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from safevlm.data.perturbations import PADDING

if TYPE_CHECKING:
    from torch import Tensor

Box: TypeAlias = "tuple[float, float, float, float]"
"""Left, top, right, bottom, in shares of width and height."""

BORDER = 12
"""Steps of 0-255 within which two pixels are of one colour: what JPEG leaves of a border, or noise of 8/255."""
SPECKS = 0.02
"""Share of a row or column that may have another colour, and is border all the same."""
SMALL = 128
"""Longer side of the copy on which a border is looked for."""
LEAST = 0.1
"""Less than this share of width or height is never left by trimming: a speck on a canvas is no image."""
PAD = 0.7
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
STEPS = (0.0, 0.25, 0.5)
"""Where tiles of half the width begin."""


@dataclass(frozen=True)
class ImageView:
    of_image: Callable[[Image.Image, int], Image.Image]
    """(RGB image, side) → (side, side)."""
    of_pixels: Callable[[Tensor, int], Tensor]
    """(3, h, w) of 0-1 and side → (3, side, side), differentiable."""
    box: Box = WHOLE
    """What part it shows."""

    def pixels(self, size: tuple[int, int]) -> int:
        """Shorter side of what it shows of an image of this size, before it is scaled."""
        left, top, right, bottom = _corners(self.box, size)
        return min(right - left, bottom - top)


@dataclass(frozen=True)
class Detail:
    """Of how many pixels a view has to be made: enlarged, it would show nothing new."""

    whole: float = 0.0
    """What is left of an image, in shares of the side that a view is scaled to."""
    part: float = 0.0
    """A part of that, likewise."""

    def is_enough(self, name: str, size: tuple[int, int], side: int) -> bool:
        view = VIEWS[name]
        return view.pixels(size) >= side * (self.whole if view.box == WHOLE else self.part)


ANY = Detail()


def view_images(image: Image.Image, names: Sequence[str], side: int, detail: Detail = ANY) -> dict[str, Image.Image]:
    """The views of these names, each of side x side pixels; `image` is RGB.

    Those of too little detail are left out.
    """
    image = image.crop(_corners(content_box(image), image.size))
    return {name: VIEWS[name].of_image(image, side) for name in names if detail.is_enough(name, image.size, side)}


def view_pixels(pixels: Tensor, names: Sequence[str], side: int, detail: Detail = ANY) -> Tensor:
    """(b, 3, h, w) of 0-1 → (b, v, 3, side, side), differentiable; what `view_images` makes, but for rounding.

    The whole image stands where it leaves a view out. Where a border ends is found on the pixels as they are, and has
    no gradient.
    """
    import torch

    return torch.stack([_of_one(image, names, side, detail) for image in pixels])


def content_box(image: Image.Image) -> Box:
    """What a border of one colour leaves of an image; all of it, where there is none, or nothing would be left."""
    small = image.copy()
    small.thumbnail((SMALL, SMALL), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    differs = np.abs(values - np.median(edge, axis=0)).max(-1) > BORDER
    columns, rows = (np.flatnonzero(differs.mean(axis) > SPECKS) for axis in (0, 1))
    if not len(columns) or not len(rows):
        return WHOLE
    box = (
        columns[0] / small.width,
        rows[0] / small.height,
        (columns[-1] + 1) / small.width,
        (rows[-1] + 1) / small.height,
    )
    if min(box[2] - box[0], box[3] - box[1]) < LEAST:
        return WHOLE
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))


def image_of(pixels: Tensor) -> Image.Image:
    """(3, h, w) of 0-1 → the image, rounded to 8 bits."""
    return Image.fromarray(pixels.detach().mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())


def pixels_of(image: Image.Image) -> Tensor:
    """RGB image → (3, h, w) of 0-1."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _of_one(pixels: Tensor, names: Sequence[str], side: int, detail: Detail) -> Tensor:
    import torch

    image = image_of(pixels)
    left, top, right, bottom = _corners(content_box(image), image.size)
    kept, size = pixels[:, top:bottom, left:right], (right - left, bottom - top)
    made = [VIEWS[name].of_pixels(kept, side) if detail.is_enough(name, size, side) else None for name in names]
    return torch.stack([_resized(pixels, side) if view is None else view for view in made])


def _corners(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels; one at least."""
    width, height = size
    left, top = min(width - 1, round(box[0] * width)), min(height - 1, round(box[1] * height))
    return left, top, max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))


def _resized(pixels: Tensor, side: int) -> Tensor:
    import torch.nn.functional as F

    return F.interpolate(pixels[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _square(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _part(box: Box) -> ImageView:
    def of_pixels(pixels: Tensor, side: int) -> Tensor:
        left, top, right, bottom = _corners(box, (pixels.shape[2], pixels.shape[1]))
        return _resized(pixels[:, top:bottom, left:right], side)

    return ImageView(lambda image, side: _square(image.crop(_corners(box, image.size)), side), of_pixels, box)


def _padded_image(image: Image.Image, side: int) -> Image.Image:
    inner = round(PAD * side)
    canvas = Image.new("RGB", (side, side), PADDING)
    canvas.paste(_square(image, inner), ((side - inner) // 2, (side - inner) // 2))
    return canvas


def _padded_pixels(pixels: Tensor, side: int) -> Tensor:
    inner = round(PAD * side)
    at = (side - inner) // 2
    canvas = pixels.new_tensor(PADDING).div(255)[:, None, None].expand(3, side, side).clone()
    canvas[:, at : at + inner, at : at + inner] = _resized(pixels, inner)
    return canvas


def _stretched_pixels(pixels: Tensor, side: int) -> Tensor:
    low, high = pixels.amin(), pixels.amax()
    return _resized((pixels - low) / (high - low).clamp(min=1 / 255), side)


def _stretched_image(image: Image.Image, side: int) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    table = [round(min(255, max(0, (value - low) * 255 / max(1, high - low)))) for value in range(256)]
    return _square(image.point(table * 3), side)


def _turned(degrees: float) -> ImageView:
    def of_pixels(pixels: Tensor, side: int) -> Tensor:
        import torch.nn.functional as F

        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        grid = F.affine_grid(pixels.new_tensor([[[cos, -sin, 0], [sin, cos, 0]]]), [1, 3, side, side], False)
        ground = pixels.new_tensor(PADDING).div(255)[:, None, None]
        moved = F.grid_sample((_resized(pixels, side) - ground)[None], grid, "bicubic", align_corners=False)[0]
        return (moved + ground).clamp(0, 1)

    def of_image(image: Image.Image, side: int) -> Image.Image:
        return _square(image, side).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=PADDING)

    return ImageView(of_image, of_pixels)


VIEWS: dict[str, ImageView] = {
    "trimmed": _part(WHOLE),
    **{
        f"tile:{1 + 3 * row + column}": _part((STEPS[column], STEPS[row], STEPS[column] + 0.5, STEPS[row] + 0.5))
        for row in range(3)
        for column in range(3)
    },
    "left": _part((0.0, 0.0, 0.5, 1.0)),
    "right": _part((0.5, 0.0, 1.0, 1.0)),
    "top": _part((0.0, 0.0, 1.0, 0.5)),
    "bottom": _part((0.0, 0.5, 1.0, 1.0)),
    "middle": _part((0.15, 0.15, 0.85, 0.85)),
    "padded": ImageView(_padded_image, _padded_pixels),
    "stretched": ImageView(_stretched_image, _stretched_pixels),
    "inverted": ImageView(
        lambda image, side: ImageOps.invert(_square(image, side)), lambda p, side: 1 - _resized(p, side)
    ),
    **{f"turned:{degrees}": _turned(degrees) for degrees in (15, -15, 30, -30)},
}
