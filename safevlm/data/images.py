"""Opening an image that a user gave us: upright RGB, or an error that names it. The only place where images open."""

from __future__ import annotations

import base64
import binascii
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from safevlm.data.pixel_modes import ModeError, to_rgb
from safevlm.types import ImageSource

if TYPE_CHECKING:
    from numpy import ndarray

ADDRESSES = ("http://", "https://", "ftp://", "file://")
MAX_PIXELS = 64_000_000
"""Larger images are refused; decoding one could take gigabytes."""

MAX_FRAMES = 64
"""Frames of an animation, or pages, that a detector looks at; an image with more is refused, not looked at in part."""
MAX_PIXELS_OF_FRAMES = 4 * MAX_PIXELS
UPRIGHT = 1
"""EXIF orientation of an image that is stored as it is seen."""


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def open_image(source: ImageSource) -> Image.Image:
    """Decodes an image completely → RGB, turned as its EXIF orientation says, and what is transparent on white.

    `source`: a path, a `data:` URI, an open image, a file's bytes, or a numpy array (h, w, 3) or (h, w) of uint8. Of an
    animation or several pages the first one, and of an open image the one it stands at. Grey of 16 bits, floats and the
    other modes are scaled to 8 bits; a range of values that cannot be shown is an error.
    ImageError: missing, empty, truncated, too large, no image at all, or an address on the network, which is never
    fetched.
    """
    file, name = _located(source)
    with _named(name):
        return _decoded(_opened(file, name))


def open_drawing(source: ImageSource) -> Image.Image:
    """An image with its transparency, RGBA, for what is laid on a ground; not turned. Errors: as `open_image`."""
    file, name = _located(source)
    with _named(name):
        return _opened(file, name).convert("RGBA")


def open_frames(source: ImageSource, name: str = "") -> Iterator[Image.Image]:
    """Every frame or page, one at a time: what `open_image` gives, then the others in their order.

    `name`: what errors call it, where the source has no name of its own.

    ImageError: as there; and more than `MAX_FRAMES` frames, or more than `MAX_PIXELS_OF_FRAMES` pixels in all of them,
    since a guard that looked at some of them would be told where not to look.
    """
    file, own_name = _located(source)
    name = name or own_name
    with _named(name):
        image = _opened(file, name)
        shown = image.tell()
        if _is_single(image, shown):
            yield _decoded(image)
            return
        try:
            for index in itertools.chain([shown], _others(image, shown, name)):
                image.seek(index)
                yield _decoded(image).copy()
        finally:
            image.seek(shown)


def decode_image(data: bytes, name: str) -> Image.Image:
    """`open_image` for a file whose bytes are in memory (out of an archive); `name` is for errors."""
    with _named(name):
        return _decoded(_opened(_in_memory(data, name), name))


def is_animated(path: Path) -> bool:
    """Whether it has more than one frame or page; of something unreadable False."""
    try:
        image = Image.open(path)
        return not _is_single(image, image.tell())
    except Exception:  # noqa: BLE001 - as in `_named`
        return False


def is_there(path: str | Path) -> bool:
    """Whether a file is there; not where the path is too long, or has characters that none has."""
    return os.path.isfile(path)


def is_plain_name(name: str) -> bool:
    """Whether a name below a folder is the rest of its path as it stands: relative, and nothing to tidy in it."""
    return bool(name) and name[0] not in "./" and name[-1] != "/" and "//" not in name and "/." not in name


def image_size(data: bytes, formats: tuple[str, ...] | None = None) -> tuple[int, int]:
    """Width and height as stored, from the header; of something unreadable, a size that no image has.

    `formats`: all that are tried, as PIL calls them; None: every one that PIL reads.
    """
    try:
        return Image.open(BytesIO(data), formats=formats).size
    except Exception:  # noqa: BLE001 - as in `_named`
        return (0, 0)


def image_format(data: bytes) -> str:
    """Its file format as PIL calls it, from the header: `PNG`, `JPEG`; empty: no image."""
    try:
        return Image.open(BytesIO(data)).format or ""
    except Exception:  # noqa: BLE001 - as in `_named`
        return ""


def name_of(source: ImageSource) -> str:
    """What an error calls an image."""
    if isinstance(source, str) and source.startswith("data:"):
        return f"{source.partition(',')[0][:60]},…"
    if isinstance(source, str | Path):
        return str(source)
    return "image given as bytes" if isinstance(source, bytes) else "the open image"


# where it is


def _located(source: ImageSource) -> tuple[Path | BytesIO | Image.Image, str]:
    """What PIL opens, or has opened, and its name in errors."""
    name = name_of(source)
    if isinstance(source, Image.Image):
        return source, name
    if isinstance(source, bytes):
        return _in_memory(source, name), name
    if isinstance(source, str) and source.startswith("data:"):
        return _in_memory(_uri_bytes(source, name), name), name
    if isinstance(source, str) and source.lower().startswith(ADDRESSES):
        raise ImageError(
            f"{source}: images are not fetched from addresses; download it, and give a path, bytes or a data: URI"
        )
    if not isinstance(source, str | Path):
        return _from_array(source), name
    return _file(Path(source)), name


def _file(path: Path) -> Path:
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # too long, or with characters that no path has
        raise ImageError(f"{str(path)[:60]!r}…: no path of an image file ({_reason(error)})") from error
    if not is_file:
        raise ImageError(f"{path}: no such image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the image file is empty (0 bytes)")
    return path


def _in_memory(data: bytes, name: str) -> BytesIO:
    if not data:
        raise ImageError(f"{name}: the image is empty (0 bytes)")
    return BytesIO(data)


def _uri_bytes(uri: str, name: str) -> bytes:
    """Of `data:image/png;base64,…`."""
    kind, comma, data = uri.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise ImageError(f"{name}: only base64 data is read; write data:image/png;base64,…")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name}: not valid base64 ({error})") from error


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
    return Image.fromarray(source)


# what is in it


def _opened(file: Path | BytesIO | Image.Image, name: str) -> Image.Image:
    """Its header is read, its pixels are not."""
    image = file if isinstance(file, Image.Image) else Image.open(file)
    if not image.width or not image.height:
        raise ImageError(f"{name}: an image of {image.width} x {image.height} pixels is empty")
    if image is not file:  # what a caller has opened, he has in memory
        _check_size(image, name)
    return image


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels are over the limit of {MAX_PIXELS:,}; scale it down"
        )


def _is_single(image: Image.Image, shown: int) -> bool:
    """Whether there is one frame; also when the others cannot be reached by anybody, since the file is closed."""
    try:
        if not getattr(image, "is_animated", False):
            return True
        image.seek(int(shown == 0))
        image.seek(shown)
    except ValueError as error:
        if "closed" in str(error):
            return True
        raise
    return False


def _others(image: Image.Image, shown: int, name: str) -> Iterator[int]:
    """Indexes of the frames that are not `shown`, each looked up when it is asked for."""
    pixels = image.width * image.height
    for index in itertools.count():
        if index == shown:
            continue
        try:
            image.seek(index)
        except EOFError:
            if index < getattr(image, "n_frames", 0):
                raise
            return
        if index >= MAX_FRAMES:
            raise ImageError(
                f"{name}: more than {MAX_FRAMES} frames or pages, and a guard must look at each; leave some out"
            )
        _check_size(image, name)
        pixels += image.width * image.height
        if pixels > MAX_PIXELS_OF_FRAMES:
            raise ImageError(
                f"{name}: its frames have more than {MAX_PIXELS_OF_FRAMES:,} pixels together; scale it down"
            )
        yield index


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever goes wrong while an image is read is an ImageError in one line that names it."""
    try:
        yield
    except ImageError:
        raise
    except ModeError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: far more pixels than the limit of {MAX_PIXELS:,}; scale it down") from error
    except Exception as error:  # noqa: BLE001 - decoders fail on hostile bytes in ways that no list is complete of
        raise ImageError(f"{name}: the image cannot be used: broken or truncated ({_line(error)})") from error


def _decoded(image: Image.Image) -> Image.Image:
    if image.mode == "P" and image.palette is None:
        raise ModeError("a palette image without its palette; save it again")
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
