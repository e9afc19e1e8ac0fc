"""Images as data URIs: for servers that take no files, and for pages that load nothing from outside."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from PIL import Image

THUMBNAIL_QUALITY = 80  # of JPEG


def image_uri(image: Image.Image, side: int, quality: int) -> str:
    """RGB image → JPEG with full colour resolution, its longer side at most `side` pixels.

    The same image gives the same text, so answers about it can be cached by what was sent.
    """
    return _uri(_scaled(image, side), "JPEG", quality=quality, subsampling=0)


def thumbnail_uri(image: Image.Image, side: int) -> str:
    """RGB image → at most `side` pixels: one of half that size or less as it is (PNG), a larger one as a JPEG."""
    if max(image.size) <= side // 2:
        return _uri(image, "PNG")
    return _uri(_scaled(image, side), "JPEG", quality=THUMBNAIL_QUALITY)


def _scaled(image: Image.Image, side: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
