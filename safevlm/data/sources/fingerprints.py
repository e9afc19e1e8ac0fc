"""Whether two image files show the same pixels: what a test set in the training pool is found by.

Equal bytes are equal images, and cheap to see. Else the decoded pixels are compared, so that an image saved again
without loss (another name, another metadata block, PNG for BMP) is found too. A JPEG encoded anew, a crop or another
size has other pixels and is NOT found: this guards against the same file twice, not against near-duplicates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from safevlm.data.images import decode_image, image_size
from safevlm.data.sources.images import read_images
from safevlm.data.sources.row import ImageFile
from safevlm.data.threads import in_threads


@dataclass(frozen=True)
class Leak:
    """A training image that is also held out."""

    image: ImageFile
    held_out: ImageFile
    """The held-out image that it shows."""

    def __str__(self) -> str:
        return f"{self.image} = {self.held_out}"


def file_digest(path: Path) -> str:
    """sha256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pixel_digest(data: bytes, name: str) -> str:
    """sha256 of size and RGB pixels. ImageError: not an image that can be read."""
    return image_digest(decode_image(data, name)).hex()


def image_digest(image: Image.Image) -> bytes:
    """sha256 of size and pixels: the same for the same image in another lossless file."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.digest()


def pixel_fingerprints(images: Collection[ImageFile], title: str) -> dict[ImageFile, str]:
    """Image → digest of its pixels."""

    def work(pair: tuple[ImageFile, bytes]) -> tuple[ImageFile, str]:
        return pair[0], pixel_digest(pair[1], str(pair[0]))

    return dict(in_threads(work, read_images(images), title, len(images)))


class HeldOut:
    """Images that training must not hold."""

    def __init__(self, images: Collection[ImageFile]) -> None:
        self._by_bytes: dict[str, ImageFile] = {}
        self._by_pixels: dict[str, ImageFile] = {}
        self._sizes: set[tuple[int, int]] = set()
        for image, digest, pixels, size in in_threads(
            _held_out_prints, read_images(images), "held-out images", len(images)
        ):
            self._by_bytes.setdefault(digest, image)
            self._by_pixels.setdefault(pixels, image)
            self._sizes.add(size)

    def __len__(self) -> int:
        return len(self._by_pixels)

    def leaks(self, images: Collection[ImageFile]) -> Iterator[Leak]:
        """The images that are held out."""
        found = in_threads(self._leak, read_images(images), "comparing with held-out", len(images))
        yield from (leak for leak in found if leak is not None)

    def match(self, image: ImageFile, data: bytes) -> ImageFile | None:
        """The held-out image that these bytes show."""
        match = self._by_bytes.get(bytes_digest(data))
        if match is None and _sides(data) in self._sizes:  # other sizes need not be decoded
            match = self._by_pixels.get(pixel_digest(data, str(image)))
        return match

    def _leak(self, pair: tuple[ImageFile, bytes]) -> Leak | None:
        match = self.match(*pair)
        return Leak(pair[0], match) if match else None


def _held_out_prints(pair: tuple[ImageFile, bytes]) -> tuple[ImageFile, str, str, tuple[int, int]]:
    image, data = pair
    return image, bytes_digest(data), pixel_digest(data, str(image)), _sides(data)


def _sides(data: bytes) -> tuple[int, int]:
    """Shorter and longer side: equal for equal images, also where one of them is stored turned."""
    shorter, longer = sorted(image_size(data))
    return shorter, longer
