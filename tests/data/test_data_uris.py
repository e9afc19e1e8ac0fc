"""Images as data URIs."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

from safevlm.data.data_uris import image_uri, thumbnail_uri


def _opened(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_large_image_is_scaled_down_and_stays_as_it_was() -> None:
    image = Image.new("RGB", (3000, 1500), "red")
    uri = image_uri(image, side=1024, quality=95)
    assert uri == image_uri(image, side=1024, quality=95), "a judge's cache knows an image by its text"
    assert _opened(uri).size == (1024, 512) and image.size == (3000, 1500)


def test_a_small_thumbnail_loses_nothing() -> None:
    image = Image.linear_gradient("L").resize((100, 60)).convert("RGB")
    opened = _opened(thumbnail_uri(image, side=288))
    assert opened.format == "PNG" and opened.tobytes() == image.tobytes()


def test_a_large_thumbnail_is_a_small_jpeg() -> None:
    opened = _opened(thumbnail_uri(Image.new("RGB", (900, 300)), side=288))
    assert (opened.format, opened.size) == ("JPEG", (288, 96))
