"""EXIF orientation: the model sees a photo as its photographer saw it, whatever the camera stored."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import ExifTags, Image

from safevlm.data.images import open_image
from safevlm.data.sources.fingerprints import HeldOut
from safevlm.data.sources.row import ImageFile

SIZE = (48, 32)
STORED = {  # what the camera stores, for the scene to be seen upright: the inverse of what the tag tells a viewer to do
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF, LZW": {"compression": "tiff_lzw"},
}


def _scene(mode: str = "RGB") -> Image.Image:
    """Another colour in each quarter, so that no turn or flip leaves it as it is."""
    scene = Image.new("RGB", SIZE, "white")
    for box, colour in {(0, 0, 24, 16): "red", (24, 0, 48, 16): "lime", (0, 16, 24, 32): "blue"}.items():
        scene.paste(colour, box)
    return scene.convert(mode)


def _stored(tag: int, kind: str = "PNG", mode: str = "RGB", exif: bytes | None = None) -> bytes:
    method = STORED[tag]
    pixels = _scene(mode) if method is None else _scene(mode).transpose(method)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = tag
    content = BytesIO()
    pixels.save(content, kind.split(",")[0], exif=tags if exif is None else exif, **FORMATS[kind])
    return content.getvalue()


def _assert_upright(image: Image.Image, mode: str = "RGB") -> None:
    truth = _scene(mode).convert("RGB")
    assert image.size == truth.size, "the image lies on its side"
    worst = max(abs(a - b) for a, b in zip(image.tobytes(), truth.tobytes(), strict=True))
    assert worst <= 4, f"a pixel is {worst} of 255 off: the image is turned or mirrored"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tag", STORED)
def test_all_eight_orientations_are_seen_upright(kind: str, tag: int) -> None:
    _assert_upright(open_image(_stored(tag, kind)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tag", STORED)
def test_an_open_image_is_turned_too_and_not_changed(kind: str, tag: int) -> None:
    given = Image.open(BytesIO(_stored(tag, kind)))
    opened = open_image(given)
    before = given.tobytes()
    _assert_upright(opened)
    _assert_upright(open_image(given))
    assert given.tobytes() == before, "the caller's image was turned"
    _assert_upright(open_image(opened))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
@pytest.mark.parametrize("tag", [2, 6])
def test_grey_palette_and_transparent_images_are_turned(mode: str, tag: int) -> None:
    _assert_upright(open_image(_stored(tag, mode=mode)), mode)


def test_sixteen_bits_are_turned() -> None:
    grey = Image.new("I;16", SIZE)
    grey.putdata([257 * value for value in _scene("L").tobytes()])
    tags, content = Image.Exif(), BytesIO()
    tags[ExifTags.Base.Orientation] = 6
    grey.transpose(STORED[6]).save(content, "PNG", exif=tags)  # type: ignore[arg-type]  # tag 6 has a method
    _assert_upright(open_image(content.getvalue()), "L")


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\xff\xff",  # a fraction that lies nowhere
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01six\0",  # a text
        b"Exif\0\0rubbish",
        bytes(range(256)),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, about such blocks
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_does_not_lose_the_image(kind: str, block: bytes) -> None:
    _assert_upright(open_image(_stored(1, kind, exif=block)))


@pytest.mark.parametrize("tag", [0, 9, 255])
def test_an_orientation_that_does_not_exist_changes_nothing(tag: int) -> None:
    tags, content = Image.Exif(), BytesIO()
    tags[ExifTags.Base.Orientation] = tag
    _scene().save(content, "PNG", exif=tags)
    _assert_upright(open_image(content.getvalue()))


def test_a_readable_orientation_beside_a_broken_tag_counts() -> None:
    """Writing such a block back, as `exif_transpose` does, fails."""
    orientation = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    broken = b"\x87\x69\0\x04\0\0\0\x01\xff\xff\xff\xff"  # an IFD that lies nowhere
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + orientation + broken + b"\0\0\0\0"
    _assert_upright(open_image(_stored(6, "PNG", exif=block)))


def test_a_held_out_image_is_found_when_it_was_stored_turned(tmp_path: Any) -> None:
    (tmp_path / "held.png").write_bytes(_stored(1))
    (tmp_path / "turned.png").write_bytes(_stored(6))
    held = HeldOut([ImageFile(tmp_path / "held.png")])
    leaks = list(held.leaks([ImageFile(tmp_path / "turned.png")]))
    assert len(leaks) == 1, "the same pixels under another orientation are the same image"
