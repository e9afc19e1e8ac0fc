"""An image resized and cropped, where only what the crop leaves is computed: the same to the bit, a quarter faster.

PIL can resize the box of an image that becomes the crop, its neighbours included. Two traps. PIL counts from the box's
edge, in floats, so that the weights of its sums may differ in their last bits; but it rounds them to 22 bits before it
uses them, so a box is taken where its edges are numbers that a float32 holds, and where no weight is so near to half a
step that the last bits of a double could round it the other way. And since Pillow 13 the shape decides whether rows or
columns are resized first, which gives other values: both ways are compared on noise, once for every shape.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

if TYPE_CHECKING:
    from numpy import ndarray

Size: TypeAlias = tuple[int, int]
"""Width and height."""
Crop: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom."""
WEIGHT_BITS = 22
"""Of a weight behind the point, in PIL's sums of 8-bit values (`PRECISION_BITS` in its Resample.c)."""
BOX_BITS = 6
"""Of a box's edge behind the point; with 18 bits before it, more than any image is long, a float32 holds it."""
REACH = 2
"""Pixels of the smaller scale that bicubic reads to each side."""
DOUBT = 32
"""Last bits of a place in the image by which a weight could be off: a few operations of a double, and bicubic changes
by less than 2 from one pixel to the next."""
MOST_PIXELS = 16_000_000
"""Of an image of noise."""


def resized_crop(image: Image.Image, size: Size, crop: Crop, filter: int) -> Image.Image:
    """`image.resize(size, filter).crop(crop)`; the crop lies within `size`."""
    is_whole = crop == (0, 0, *size)
    if not is_whole and filter == Image.Resampling.BICUBIC and image.mode == "RGB":
        box = _box(image.size, size, crop)
        if box is not None:
            return image.resize(_size(crop), filter, box)
    resized = image if image.size == size else image.resize(size, filter)
    return resized if is_whole else resized.crop(crop)


@lru_cache(maxsize=1024)
def _box(given: Size, size: Size, crop: Crop) -> tuple[float, float, float, float] | None:
    """What becomes the crop of an image of the size `given`; None: PIL might give other values for it alone."""
    across, down = (_edges(given[axis], size[axis], crop[axis], crop[axis + 2]) for axis in (0, 1))
    if across is None or down is None or given[0] * given[1] > MOST_PIXELS:
        return None
    box = across[0], down[0], across[1], down[1]
    noise = _noise(given)
    resized = noise.resize(size, Image.Resampling.BICUBIC)
    alone = noise.resize(_size(crop), Image.Resampling.BICUBIC, box)
    return box if resized.crop(crop).tobytes() == alone.tobytes() else None


def _edges(length: int, wanted: int, first: int, end: int) -> tuple[float, float] | None:
    """Of what becomes the values from `first` to before `end`, where `length` of them become `wanted`."""
    if (first, end) == (0, wanted):
        return 0, length
    is_held = not any((edge * length << BOX_BITS) % wanted for edge in (first, end))
    if not is_held or not _rounds_safely(length, wanted, first, end):
        return None
    return first * length / wanted, end * length / wanted


def _rounds_safely(length: int, wanted: int, first: int, end: int) -> bool:
    """Whether no weight is nearer to half a step than doubles are exact."""
    import numpy

    scale = length / wanted
    stretch = max(scale, 1.0)
    centers = (numpy.arange(first, end)[:, None] + 0.5) * scale
    taps = numpy.arange(2 * REACH * (int(stretch) + 1) + 2)
    places = numpy.floor(centers - REACH * stretch) + taps
    weights = _bicubic((places + 0.5 - centers) / stretch) * ((places >= 0) & (places < length))
    steps = weights / weights.sum(1, keepdims=True) * 2**WEIGHT_BITS
    from_half = numpy.abs(numpy.abs(steps) % 1 - 0.5)
    return bool(from_half.min() > DOUBT * numpy.finfo(float).eps * length * 2**WEIGHT_BITS)


def _bicubic(places: ndarray[Any, Any]) -> ndarray[Any, Any]:
    """Keys 1981 with a = -1/2, as PIL has it."""
    import numpy

    at = numpy.abs(places)
    near = (1.5 * at - 2.5) * at * at + 1
    far = ((-0.5 * at + 2.5) * at - 4) * at + 2
    return numpy.where(at < 1, near, numpy.where(at < REACH, far, 0.0))


def _noise(size: Size) -> Image.Image:
    import numpy

    return Image.frombytes("RGB", size, numpy.random.default_rng(0).bytes(3 * size[0] * size[1]))


def _size(crop: Crop) -> Size:
    return crop[2] - crop[0], crop[3] - crop[1]
