"""Opening an image that a user gave us: upright RGB, or an error that names it. The only place where images open."""

from __future__ import annotations

import base64
import binascii
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from safevlm.data.pixel_modes import to_rgb
from safevlm.types import ImageSource

if TYPE_CHECKING:
    from numpy import ndarray

ADDRESSES = ("http://", "https://", "ftp://", "file://")
MAX_PIXELS = 64_000_000
"""Larger images are refused; decoding one could take gigabytes."""

UPRIGHT = 1
"""EXIF orientation of an image that is stored as it is seen."""


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def open_image(source: ImageSource) -> Image.Image:
    """Decodes an image completely → RGB, turned as its EXIF orientation says, and what is transparent on white.

    `source`: a path, a `data:` URI, an open image, a file's bytes, or a numpy array (h, w, 3) or (h, w) of uint8. Grey
    of 16 bits, floats and the other modes are scaled to 8 bits; a range of values that cannot be shown is an error.
    ImageError: missing, empty, truncated, too large, no image at all, or an address on the network, which is never
    fetched.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source)
    if isinstance(source, bytes):
        return decode_image(source, "image given as bytes")
    if isinstance(source, str) and source.startswith("data:"):
        return _decode_uri(source)
    if isinstance(source, str) and source.lower().startswith(ADDRESSES):
        raise ImageError(
            f"{source}: images are not fetched from addresses; download it, and give a path, bytes or a data: URI"
        )
    if not isinstance(source, str | Path):
        return _from_array(source)
    path = Path(source)
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # too long, or with characters that no path has
        raise ImageError(f"{str(source)[:60]!r}…: no path of an image file ({_reason(error)})") from error
    if not is_file:
        raise ImageError(f"{path}: no such image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the image file is empty (0 bytes)")
    return _decode(path, str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """The same for an image whose bytes are in memory (out of an archive); `name` is for errors."""
    if not data:
        raise ImageError(f"{name}: the image is empty (0 bytes)")
    return _decode(BytesIO(data), name)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height as stored, from the header; of something unreadable, a size that no image has."""
    try:
        return Image.open(BytesIO(data)).size
    except Exception:  # noqa: BLE001 - as in `_decode`
        return (0, 0)


def image_format(data: bytes) -> str:
    """Its file format as PIL calls it, from the header: `PNG`, `JPEG`; empty: no image."""
    try:
        return Image.open(BytesIO(data)).format or ""
    except Exception:  # noqa: BLE001 - as in `_decode`
        return ""


def _decode_uri(uri: str) -> Image.Image:
    """`data:image/png;base64,…`; errors show its beginning only, since it can have megabytes."""
    name, comma, data = uri.partition(",")
    shown = f"{name[:60]},…"
    if not comma or not name.endswith(";base64"):
        raise ImageError(f"{shown}: only base64 data is read; write data:image/png;base64,…")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{shown}: not valid base64 ({error})") from error
    return decode_image(content, shown)


def _from_pil(image: Image.Image) -> Image.Image:
    if not image.width or not image.height:
        raise ImageError(f"an image of {image.width} x {image.height} pixels is empty")
    try:
        return _decoded(image)
    except Exception as error:  # noqa: BLE001 - as in `_decode`
        raise ImageError(
            f"the open image cannot be used: broken or truncated, or its file was closed ({_line(error)})"
        ) from error


def _reason(error: OSError | ValueError) -> str:
    """Without the path, which may have thousands of characters."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _from_array(source: ndarray[Any, Any]) -> Image.Image:
    """Pixels (h, w, 3) or (h, w) of uint8. Other types hold other ranges (0 to 1, BGR, …), which nobody can guess."""
    import numpy

    if not isinstance(source, numpy.ndarray):
        raise ImageError(
            f"{type(source).__name__} is no image; give a path, a data: URI, bytes, a PIL image or a numpy array"
        )
    fits = source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)
    if source.dtype != numpy.uint8 or not fits or not source.size:
        raise ImageError(
            f"an array of shape {source.shape} and type {source.dtype} is no image; "
            "give (height, width, 3) or (height, width) of uint8, 0 to 255, RGB"
        )
    if source.shape[0] * source.shape[1] > MAX_PIXELS:
        raise ImageError(f"an array of shape {source.shape} is over the limit of {MAX_PIXELS:,} pixels; scale it down")
    return to_rgb(Image.fromarray(source))


def _decode(file: Path | BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(file)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{name}: {image.width} x {image.height} pixels are over the limit of {MAX_PIXELS:,}; scale it down"
            )
        return _decoded(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: far more pixels than the limit of {MAX_PIXELS:,}; scale it down") from error
    except Exception as error:  # noqa: BLE001 - decoders fail on hostile bytes in ways that no list is complete of
        raise ImageError(f"{name}: the image cannot be used: broken or truncated ({_line(error)})") from error


def _decoded(image: Image.Image) -> Image.Image:
    if image.mode == "P" and image.palette is None:
        raise ValueError("colours by number without a palette")
    image.load()
    turned = _orientation(image)
    rgb = to_rgb(image)
    if turned == UPRIGHT:
        return rgb
    bare = rgb.copy()  # with this tag alone: `exif_transpose` writes back all others, and fails where one is broken
    bare.info = {}
    bare.getexif()[ExifTags.Base.Orientation] = turned
    return ImageOps.exif_transpose(bare)


def _orientation(image: Image.Image) -> int:
    """A block of EXIF that cannot be read says nothing: the pixels are what counts."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # noqa: BLE001 - the parsers of EXIF, TIFF tags and XMP fail in many ways
        return UPRIGHT
    return orientation if orientation in range(2, 9) else UPRIGHT


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
