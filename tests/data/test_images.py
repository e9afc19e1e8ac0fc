"""Opening an image: RGB whatever the file holds, or an error that names the file; never a blank in its place."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from safevlm.data import images
from safevlm.data.images import ImageError, open_image


def _image(mode: str = "RGB") -> Image.Image:
    """A gradient of 40 x 30, so that a truncated file is noticed."""
    return Image.merge("RGB", [Image.linear_gradient("L").resize((40, 30))] * 3).convert(mode)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_that_claims(width: int, height: int) -> bytes:
    """A real PNG whose header promises far more pixels than it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _error(path: Path) -> str:
    with pytest.raises(ImageError) as error:
        open_image(path)
    assert str(path) in str(error.value), "the error does not name the file"
    return str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such image file" in _error(tmp_path / "gone.png")
    assert "no such image file" in _error(tmp_path), "a folder is no image"


def test_zero_byte_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    assert "empty" in _error(tmp_path / "empty.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_file(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = Image.effect_noise((90, 90), 80).convert("RGB")
    noise.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    _error(path)


@pytest.mark.parametrize(
    "content", [b"not an image at all", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"]
)
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.png").write_bytes(content)
    _error(tmp_path / "text.png")


def test_damaged_checksum_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bits.png"
    Image.effect_noise((60, 60), 80).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    _error(path)


def test_too_large_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.png"
    _image().save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 30 - 1)
    message = _error(path)
    assert "40 x 30" in message and "scale it down" in message
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 30)
    assert open_image(path).size == (40, 30), "the limit itself is allowed"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(9_000, 8_000), (11_000, 11_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)]
)
def test_header_that_claims_a_giant_is_refused_for_its_size(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_that_claims(width, height))
    message = _error(path)
    assert "scale it down" in message, f"the user is told that the file is broken, but it is too large: {message}"


def test_transparency_is_put_on_white(tmp_path: Path) -> None:
    for index, image in enumerate(
        [Image.new("RGBA", (4, 4), (255, 0, 0, 0)), Image.new("LA", (4, 4), (0, 0)), Image.new("P", (4, 4), 0)]
    ):
        options = {"transparency": 0} if image.mode == "P" else {}
        image.save(tmp_path / f"{index}.png", **options)
        assert open_image(tmp_path / f"{index}.png").getpixel((1, 1)) == (255, 255, 255), (
            f"{image.mode}: what is transparent must be white; else hidden colours reach the model"
        )
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert open_image(half).getpixel((0, 0)) == (255, 127, 127)


def test_open_image_is_taken_as_it_is() -> None:
    image = _image()
    assert open_image(image) is image
    assert open_image(_image("L")).mode == "RGB"


def test_opening_in_threads_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _image().save(path)
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [open_image(path) for _ in range(30)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before, "warnings.catch_warnings is not made for threads; the filters leaked"
