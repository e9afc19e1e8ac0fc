"""Every mode of pixels is seen as the same picture in 8 bits, or refused: never constant, never clipped in silence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safevlm.data.images import ImageError, open_image

SIZE = (40, 30)
Maker = Callable[[], Image.Image | bytes]


def _grey() -> Image.Image:
    """A gradient over nearly the whole range; of 8 bits, the truth that all others are compared with."""
    return Image.linear_gradient("L").resize(SIZE)


def _colour() -> Image.Image:
    across = Image.linear_gradient("L").rotate(90).resize(SIZE)
    return Image.merge("RGB", [_grey(), across, Image.new("L", SIZE, 90)])


def _values(kind: Any, factor: float = 1, offset: float = 0) -> np.ndarray[Any, Any]:
    return (np.asarray(_grey()).astype(np.float64) * factor + offset).astype(kind)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _wide(mode: str) -> Image.Image:
    return Image.frombytes(mode, SIZE, _values({"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2"}[mode], 257).tobytes())


def _png(depth: int, colour_type: int, rows: list[bytes], extra: bytes = b"", width: int = SIZE[0]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _tiff(values: np.ndarray[Any, Any], bits: int, sample_format: int, photometric: int = 1) -> bytes:
    """A bare TIFF of one strip, with the samples as they are; what PIL does not write itself."""
    tags = {256: SIZE[0], 257: SIZE[1], 258: bits, 259: 1, 262: photometric, 277: 1, 278: SIZE[1], 339: sample_format}
    tags |= {273: 8, 279: values.nbytes}
    order = "<" if values.dtype.byteorder != ">" else ">"
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + values.nbytes)
    rows = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return head + values.tobytes() + struct.pack(f"{order}H", len(tags)) + rows + struct.pack(f"{order}I", 0)


GREY: dict[str, Maker] = {
    "L": _grey,
    "LA": lambda: _grey().convert("LA"),
    "La": lambda: _grey().convert("LA").convert("La"),
    "I of 8 bits": lambda: _grey().convert("I"),
    "F of 8 bits": lambda: _grey().convert("F"),
    "I of 16 bits": lambda: Image.fromarray(_values(np.int32, 257)),
    "F from 0 to 1": lambda: Image.fromarray(_values(np.float32, 1 / 255)),
    "F of 16 bits": lambda: Image.fromarray(_values(np.float32, 257)),
    "I;16": lambda: _wide("I;16"),
    "I;16L": lambda: _wide("I;16L"),
    "I;16B": lambda: _wide("I;16B"),
    "PNG of 16 bits": lambda: _saved(_wide("I;16"), "PNG"),
    "PNG of 16 bits, alpha": lambda: _png(
        16, 4, [b"".join(struct.pack(">HH", value, 65_535) for value in row) for row in _values(np.int64, 257)]
    ),
    "PNG of 16 bits, a transparent grey": lambda: _png(
        16,
        0,
        [row.tobytes() for row in _values(">u2", 257)],
        b"\0\0\0\2tRNS\0\1" + struct.pack(">I", zlib.crc32(b"tRNS\0\1")),
    ),
    "PGM of 16 bits": lambda: _saved(_wide("I;16"), "PPM"),
    "PGM of 10 bits": lambda: b"P5 40 30 1023\n" + _values(">u2", 1023 / 255, 0.5).tobytes(),
    "TIFF of 16 bits": lambda: _saved(_wide("I;16"), "TIFF"),
    "TIFF of 16 bits, big endian": lambda: _tiff(_values(">u2", 257), 16, 1),
    "TIFF of 16 bits, white is 0": lambda: _tiff(65_535 - _values("<u2", 257), 16, 1, photometric=0),
    "TIFF of 32 bits": lambda: _saved(Image.fromarray(_values(np.int32, 257)), "TIFF"),
    "TIFF of floats": lambda: _saved(Image.fromarray(_values(np.float32, 1 / 255)), "TIFF"),
}
COLOUR: dict[str, Maker] = {
    "RGB": _colour,
    "RGBA": lambda: _colour().convert("RGBA"),
    "RGBa": lambda: _colour().convert("RGBA").convert("RGBa"),
    "RGBX": lambda: _colour().convert("RGBX"),
    "CMYK": lambda: _colour().convert("CMYK"),
    "CMYK in JPEG, inverted as Adobe's": lambda: _saved(_colour().convert("CMYK"), "JPEG", quality=100),
    "CMYK in TIFF": lambda: _saved(_colour().convert("CMYK"), "TIFF"),
    "YCbCr": lambda: _colour().convert("YCbCr"),
    "HSV": lambda: _colour().convert("HSV"),
    "LAB": lambda: _colour().convert("LAB"),
    "LAB in TIFF": lambda: _saved(_colour().convert("LAB"), "TIFF"),
    "PNG of 16 bits": lambda: _png(
        16,
        2,
        [
            b"".join(struct.pack(">HHH", *(257 * int(each) for each in pixel)) for pixel in row)
            for row in np.asarray(_colour())
        ],
    ),
}


def _off(made: Image.Image | bytes, truth: Image.Image) -> int:
    opened = open_image(made)
    assert opened.mode == "RGB" and opened.size == truth.size
    return int(np.abs(np.asarray(opened).astype(int) - np.asarray(truth.convert("RGB")).astype(int)).max())


@pytest.mark.parametrize("name", GREY)
def test_grey_of_every_depth_is_the_grey_of_eight_bits(name: str) -> None:
    assert _off(GREY[name](), _grey()) <= 1, "the model sees another image than the user"


@pytest.mark.parametrize("name", COLOUR)
def test_every_colour_space_is_the_same_image(name: str) -> None:
    at_most = 32 if name.startswith("LAB") else 8  # LAB of 8 bits is coarse where colours are pure
    assert _off(COLOUR[name](), _colour()) <= at_most, "the model sees another image than the user"


def test_one_bit_is_black_and_white() -> None:
    image = _grey().convert("1")
    for made in (image, _saved(image, "PNG"), _saved(image, "TIFF", compression="group4")):
        assert _off(made, image) == 0


def test_palettes_keep_their_colours_and_their_alpha() -> None:
    image = _colour().quantize(200)
    assert _off(image, image.convert("RGB")) == 0
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert _off(_saved(image, kind), image.convert("RGB")) == 0, kind
    two = Image.new("P", (2, 1))
    two.putpalette([255, 0, 0, 0, 0, 255])
    two.putdata([0, 1])
    content = _saved(two, "PNG", transparency=bytes([0, 128]))
    opened = open_image(content)
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == (127, 127, 255)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth: int) -> None:
    scale, code = (1, "B") if depth == 8 else (257, "H")
    row = struct.pack(f">6{code}", *(value * scale for value in (200, 10, 30, 1, 2, 3)))
    key = b"tRNS" + struct.pack(">3H", *(value * scale for value in (200, 10, 30)))
    content = _png(depth, 2, [row], struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key)), width=2)
    opened = open_image(content)
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (1, 2, 3)]


@pytest.mark.parametrize(
    "values",
    [
        _values(np.int32, 70_000),
        _values(np.int32, 1, -10),
        _values(np.float32, 1, -20),
        _values(np.float32, 1e9),
        _values(np.float32, np.nan),
        np.where(_values(np.float32) > 100, np.float32(np.inf), np.float32(0)),
        np.where(_values(np.float32) > 100, np.float32(np.nan), np.float32(0)),
    ],
)
def test_a_range_that_nobody_can_show_is_refused(values: np.ndarray[Any, Any]) -> None:
    for made in (Image.fromarray(values), _saved(Image.fromarray(values), "TIFF")):
        with pytest.raises(ImageError, match="8-bit"):
            open_image(made)


def test_differences_that_eight_bits_cannot_hold_are_refused() -> None:
    """16 bits of which only the lowest are used: a viewer would show black, and the model would be told nothing."""
    ramp = Image.new("I;16", SIZE)
    ramp.putdata([value % 100 for value in range(SIZE[0] * SIZE[1])])
    with pytest.raises(ImageError, match="8-bit"):
        open_image(ramp)
    assert open_image(Image.new("I;16", SIZE, 65_535)).getextrema() == ((255, 255),) * 3, "one grey may be one grey"


def test_a_palette_image_without_its_palette_is_refused() -> None:
    with pytest.raises(ImageError, match="palette"):
        open_image(_png(8, 3, [bytes(range(40))] * 30))
