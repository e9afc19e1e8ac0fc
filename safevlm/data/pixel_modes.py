"""Any mode of a decoded image → RGB of 8 bits. The trap: PIL's own `convert` clips what has more than 8 bits to white.

Files of 16 bits say what their white is. Those of 32 bits do not (a depth map, a scan and a mask look alike), so the
least of the usual ranges that holds all values is taken, and a range that nobody uses is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from numpy import ndarray

WIDE_MODES = ("I", "F")
"""More than 8 bits in a channel; and all that begin with `I;16`."""
WHITE_OF = {"I": (255, 65_535), "F": (1, 255, 65_535)}
"""Values of white that are tried, from the least."""
SIXTEEN_BITS = 65_535
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF."""


class ModeError(ValueError):
    """Pixels that cannot be shown in 8 bits."""


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image → RGB, transparency on white. ModeError: a range of values that cannot be shown."""
    if _is_wide(image.mode):
        image = _eight_bits(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        rgba = _with_alpha(image)
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied; it converts to nothing else
        image = image.convert("LA")
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # of 16 bits; the pixels have the upper 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image.convert("RGBA")


def _is_wide(mode: str) -> bool:
    return mode in WIDE_MODES or mode.startswith("I;16")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits → L, or LA where one value is transparent."""
    import numpy

    values = numpy.asarray(image)
    least, most = values.min(), values.max()
    white = _white(image, least, most)
    shares = values.astype(numpy.float32) / numpy.float32(white)
    grey = numpy.rint(255 * (1 - shares if _is_white_zero(image) else shares)).astype(numpy.uint8)
    if least != most and grey.min() == grey.max():
        raise ModeError(f"grey values from {least} to {most} are one grey in 8 bits; save it as an 8-bit image")
    key = image.info.get("transparency")
    return _from_grey(grey, None if key is None else values != key)


def _from_grey(grey: ndarray[Any, Any], is_opaque: ndarray[Any, Any] | None) -> Image.Image:
    made = Image.fromarray(grey)
    if is_opaque is not None:
        made.putalpha(Image.fromarray(255 * is_opaque.astype(grey.dtype)))
    return made


def _white(image: Image.Image, least: float, most: float) -> float:
    """The value that is white. ModeError: values below 0, beyond all ranges, or not finite."""
    if image.mode.startswith("I;16"):
        return float(2 ** _bits(image) - 1)
    if image.mode == "I" and image.format == "PPM":  # PIL has scaled them by the file's own greatest value
        return SIXTEEN_BITS
    fitting = [white for white in WHITE_OF[image.mode] if least >= 0 and most <= white]
    if not fitting:  # of nan too, which no comparison holds for
        raise ModeError(
            f"pixels of mode {image.mode} from {least:g} to {most:g}, of which nobody can say what white is; save it "
            "as an 8-bit image"
        )
    return fitting[0]


def _bits(image: Image.Image) -> int:
    bits = _tiff_tag(image, BITS_PER_SAMPLE)
    return bits[0] if isinstance(bits, tuple) and bits[0] in range(9, 17) else 16


def _is_white_zero(image: Image.Image) -> bool:
    """TIFF's WhiteIsZero, which PIL leaves as it is for these modes."""
    return _tiff_tag(image, PHOTOMETRIC) == 0


def _tiff_tag(image: Image.Image, tag: int) -> object:
    from PIL.TiffImagePlugin import TiffImageFile

    return image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None
