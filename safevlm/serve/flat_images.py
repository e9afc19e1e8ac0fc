"""The one place where a server opens an image: decoded once, flattened, and scaled to what the vision tower reads.

What comes out is all that anybody sees of it, the guard and the model alike: upright, without transparency, its first
frame alone, and no larger than the tower's own input, so that no other scaling can show another image in it (Quiring
et al. 2020, https://arxiv.org/abs/2003.08633).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL.Image import Image

from safevlm.backbones import reading
from safevlm.data.images import ImageError, image_size, open_image
from safevlm.data.pixels import check_fits
from safevlm.serve.errors import ApiError
from safevlm.serve.fetching import Fetcher
from safevlm.serve.limits import Limits

HEAD = 64
"""Characters of a data: URI in which its kind stands."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "MPO")
"""As PIL calls them (MPO: a telephone's JPEG). It reads many more, some of them through other programs."""


@dataclass(frozen=True)
class FlatImage:
    """An image as guard and model get it."""

    image: Image
    """RGB."""
    digest: str
    """SHA-256 of the file that was sent, for lists and records."""

    def png(self) -> bytes:
        """Exactly these pixels, without metadata."""
        file = BytesIO()
        self.image.save(file, "PNG", compress_level=1)  # a server next door reads it once: time counts, not size
        return file.getvalue()

    def data_uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png()).decode()}"


class ImageOpener:
    """Opens images of requests, a few at a time."""

    def __init__(self, processor: Any, limits: Limits, fetcher: Fetcher | None = None) -> None:
        """`processor`: the checkpoint's image processor. `fetcher`: of images on the network, else refused."""
        self.processor = processor
        self.limits = limits
        self.fetcher = fetcher
        self._turn = asyncio.Semaphore(limits.decoding)

    async def open(self, uris: Sequence[str], places: Sequence[str]) -> list[FlatImage]:
        """Of `data:` URIs, and of URLs that the fetcher may fetch, in order; `places`: what errors call them.

        ApiError: one that cannot be used.
        """
        if len(uris) > self.limits.images:
            raise ApiError(
                400, f"{len(uris)} images; this server takes {self.limits.images} a request", code="too_many_images"
            )
        opened = []
        for uri, place in zip(uris, places, strict=True):
            if self.fetcher is not None and not uri.startswith("data:"):
                uri = await self.fetcher.fetch(uri, place)
            async with self._turn:
                opened.append(await asyncio.to_thread(self.opened, uri, place))
        return opened

    def opened(self, uri: str, place: str) -> FlatImage:
        """One image. ApiError: no data: URI, too large, broken, or no image."""
        try:
            data = _bytes(uri, self.limits.image_bytes)
            width, height = image_size(data, FORMATS)
            if not width * height:
                raise ImageError(
                    f"no image that this server opens, or one of absurd size; send one of {', '.join(FORMATS)}"
                )
            if width * height > self.limits.pixels:
                raise ImageError(f"{width} x {height} pixels are over the limit of {self.limits.pixels:,}")
            image = open_image(data)
            check_fits(self.processor, image, "the image")
            flat = sized(self.processor, image).copy()  # no open file any more, whose other frames can be had
            flat.info = {}  # goes into files too: with a colour profile of the client's, others may see another image
            return FlatImage(flat, hashlib.sha256(data).hexdigest())
        except ImageError as error:
            said = str(error).removeprefix("image given as bytes: ")
            raise ApiError(400, f"{place}: {said}", param=place, code="invalid_image") from error


def sized(processor: Any, image: Image) -> Image:
    """No larger than the tower reads, scaled as the image processor would scale it; smaller ones as they are.

    So are those of families that read an image in the size that it has, or in several.
    """
    if not reading.has_one_size(processor):
        return image
    shortest = processor.size.get("shortest_edge") if getattr(processor, "do_resize", True) else None
    if not shortest or min(image.size) <= shortest:
        return image
    shorter, longer = sorted(image.size)
    across = int(shortest * longer / shorter)
    size = (shortest, across) if image.width <= image.height else (across, shortest)
    return image.resize(size, processor.resample)


def _bytes(uri: str, most: int) -> bytes:
    kind, comma, data = uri[:HEAD].partition(",")
    if not uri.startswith("data:"):
        raise ImageError("no data: URI; this server fetches nothing, so send data:image/png;base64,…")
    if not comma or not kind.endswith(";base64"):
        raise ImageError("only base64 data is read; send data:image/png;base64,…")
    encoded = uri[len(kind) + 1 :]
    if len(encoded) * 3 // 4 > most:
        raise ImageError(f"more than {most:,} bytes; scale it down")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"not valid base64 ({error})") from error
