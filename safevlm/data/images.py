"""Opening an image that a user gave us: always RGB, or an error that names it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from safevlm.types import ImageSource

MAX_PIXELS = 64_000_000
"""Larger images are refused; decoding one could take gigabytes."""


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def open_image(source: ImageSource) -> Image.Image:
    """Decodes an image completely → RGB. Alpha is put on white, so that grey, palette and alpha files all work.

    ImageError: missing, empty, truncated, too large, or no image at all.
    """
    if isinstance(source, Image.Image):
        return _rgb(source)
    path = Path(source)
    if not path.is_file():
        raise ImageError(f"{path}: no such image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the image file is empty (0 bytes)")
    return _decode(path, str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """The same for an image whose bytes are in memory (out of an archive); `name` is for errors."""
    if not data:
        raise ImageError(f"{name}: the image is empty (0 bytes)")
    return _decode(BytesIO(data), name)


def _decode(file: Path | BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(file)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{name}: {image.width} x {image.height} pixels are over the limit of {MAX_PIXELS:,}; scale it down"
            )
        return _rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: far more pixels than the limit of {MAX_PIXELS:,}; scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: the image is broken or truncated ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode.startswith("I;16"):  # `convert` would clip nearly all of 16 bits to white
        return image.point(lambda value: value / 257).convert("RGB")
    return image.convert("RGB")
