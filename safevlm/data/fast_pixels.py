"""What CLIP's and LLaVA's image processors of transformers make of an RGB image, the same to the bit, in fewer steps.

transformers carries an image from PIL to numpy and back between its steps, and computes with floats of twice the
width. Here PIL does what PIL does there, and a table of what each of 256 values becomes does the rest.

The trap: another processor, another setting or another version of transformers takes other steps. Only what is listed
here is done here; and before a processor is replaced, its own pixels of a small image are compared, once a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from safevlm.data.cropped_resize import resized_crop

if TYPE_CHECKING:
    from numpy import ndarray

CLIP, LLAVA = "CLIPImageProcessorPil", "LlavaImageProcessorPil"
"""The second can pad to a square first, with the mean colour."""
TRIAL = (67, 48)
"""Width and height of the image on which both are compared."""


@dataclass(frozen=True)
class Steps:
    """What a processor does to an RGB image, in this order."""

    kind: type
    is_squared: bool
    """Padded to a square with the mean colour."""
    size: tuple[int, ...]
    """Resized to a shortest edge, or to (height, width); empty: not at all."""
    resample: int
    crop: tuple[int, int] | None
    """(height, width) of the middle that is left."""
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Steps | None:
        """None: a processor, or a setting, whose steps are not known here."""
        kind = type(processor)
        if kind.__name__ not in (CLIP, LLAVA) or not kind.__module__.startswith("transformers."):
            return None
        size, crop = _given(processor.size), _given(processor.crop_size)
        mean, std = processor.image_mean, processor.image_std
        is_known = (
            (kind.__name__ == LLAVA or not processor.do_pad)
            and (not processor.do_resize or (set(size) in ({"shortest_edge"}, {"height", "width"})))
            and (not processor.do_resize or isinstance(processor.resample, int))
            and (not processor.do_center_crop or set(crop) == {"height", "width"})
            and processor.do_rescale
            and processor.do_normalize
            and all(isinstance(values, list | tuple) and len(values) == 3 for values in (mean, std))
        )
        if not is_known:
            return None
        return cls(
            kind,
            bool(processor.do_pad),
            tuple(size[edge] for edge in ("shortest_edge", "height", "width") if edge in size and processor.do_resize),
            int(processor.resample or 0),
            (crop["height"], crop["width"]) if processor.do_center_crop else None,
            float(processor.rescale_factor),
            tuple(mean),
            tuple(std),
        )

    def pixels(self, image: Image.Image) -> ndarray[Any, Any] | None:
        """(3, h, w) float32 of an RGB image; None: the processor would put black around it."""
        import numpy

        if self.is_squared:
            image = _squared(image, self.mean)
        size = _resized(image, self.size) if self.size else image.size
        height, width = self.crop or (size[1], size[0])
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        if left < 0 or top < 0:
            return None
        image = resized_crop(image, size, (left, top, left + width, top + height), self.resample)
        table, values = _table(self), numpy.asarray(image)
        made = numpy.empty((3, image.height, image.width), numpy.float32)
        for channel in range(3):
            numpy.take(table[channel], values[..., channel], out=made[channel], mode="clip")
        return made


def fast_pixels(processor: Any, image: Image.Image) -> ndarray[Any, Any] | None:
    """(3, h, w) float32; None: this processor has to be asked itself, for this image or for any."""
    steps = Steps.of(processor)
    if steps is None or image.mode != "RGB" or "transparency" in image.info or not _agrees(processor, steps):
        return None
    return steps.pixels(image)


@lru_cache(maxsize=8)
def _agrees(processor: Any, steps: Steps) -> bool:
    """Whether the processor's own pixels are these, to the bit."""
    import numpy

    noise = numpy.random.default_rng(0).integers(0, 256, (TRIAL[1], TRIAL[0], 3), numpy.uint8)
    image = Image.fromarray(noise)
    ours, own = steps.pixels(image), processor([image], return_tensors="np")["pixel_values"][0]
    return ours is not None and ours.dtype == own.dtype and numpy.array_equal(ours, own)


def _given(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size or {}).items() if value}


def _resized(image: Image.Image, size: tuple[int, ...]) -> tuple[int, int]:
    """Width and height."""
    if len(size) == 2:
        return size[1], size[0]
    shorter, longer = sorted(image.size)
    across = int(size[0] * longer / shorter)
    return (size[0], across) if image.width <= image.height else (across, size[0])


def _squared(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    side = max(image.size)
    if image.width == image.height:
        return image
    square = Image.new("RGB", (side, side), tuple(int(share * 255) for share in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@lru_cache(maxsize=8)
def _table(steps: Steps) -> ndarray[Any, Any]:
    """(3, 256): what the processor makes of each value, by its own arithmetic."""
    import numpy

    values = numpy.broadcast_to(numpy.arange(256, dtype=numpy.uint8), (3, 1, 256))
    own = steps.kind()
    made = own.normalize(own.rescale(values, steps.factor), list(steps.mean), list(steps.std))
    return numpy.ascontiguousarray(made[:, 0], dtype=numpy.float32)
