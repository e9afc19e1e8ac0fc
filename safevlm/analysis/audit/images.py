"""Reading images ahead of the model: bytes → RGB → the processor's pixels, digests and a fingerprint, in threads.

The pixels are those that chat and training see: the same decoding and the checkpoint's own image processor, and of an
animation or several pages all of them.
Whatever a decoder does with a broken file ends in `Image.error`, never in the run.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from safevlm.analysis.audit.fingerprint import Fingerprint, fingerprint
from safevlm.analysis.audit.plan import PlacedItem
from safevlm.analysis.audit.sources import MAX_BYTES, Item
from safevlm.data.images import ImageError, open_frames
from safevlm.data.pixels import OneImage, check_fits, read_image
from safevlm.data.sources.fingerprints import image_digest

CHUNK = 16
"""Images that a thread takes at once; handing over one by one costs as much as a small image itself."""
CHUNKS_PER_WORKER = 3
"""How far threads read ahead: this many chunks each are in memory."""


@dataclass(frozen=True)
class ReadImage:
    """An image that has been read, or why it has not."""

    placed: PlacedItem
    error: str = ""
    pixels: OneImage | None = None
    """The processor's, of the first frame."""
    later: tuple[OneImage, ...] = ()
    """The same of the other frames or pages."""
    frames: int = 0
    width: int = 0
    height: int = 0
    bytes_digest: bytes = b""
    pixels_digest: bytes = b""
    fingerprint: Fingerprint | None = None


def read_ahead(items: Iterable[PlacedItem], processor: Any, workers: int) -> Iterator[ReadImage]:
    """Images of the items, in order. `processor`: the checkpoint's."""

    def read_chunk(chunk: list[PlacedItem]) -> list[ReadImage]:
        return [read(placed, processor) for placed in chunk]

    for images in _in_order(read_chunk, _chunks(items), workers):
        yield from images


def read(placed: PlacedItem, processor: Any) -> ReadImage:
    """Reads and decodes one image."""
    if placed.item.error:
        return ReadImage(placed, placed.item.error)
    try:
        data = content(placed.item)
        frames = open_frames(data, placed.item.path)
        image = next(frames)
        digest, first = image_digest(image), _pixels(image, processor, placed.item.path)
        later = []
        for frame in frames:
            digest = hashlib.sha256(digest + image_digest(frame)).digest()
            later.append(_pixels(frame, processor, placed.item.path))
        return ReadImage(
            placed,
            pixels=first,
            later=tuple(later),
            frames=1 + len(later),
            width=image.width,
            height=image.height,
            bytes_digest=hashlib.sha256(data).digest(),
            pixels_digest=digest,
            fingerprint=fingerprint(image),
        )
    except Exception as error:  # noqa: BLE001 - decoders fail on hostile bytes in ways that no list is complete of
        return ReadImage(placed, _reason(error, placed.item))


def content(item: Item) -> bytes:
    """The file's bytes. ImageError: missing, or larger than any image should be."""
    if item.data is not None:
        return item.data
    path = Path(item.file)
    if not path.is_file():  # a pipe or a device would never end
        raise ImageError(f"{item.path}: no such image file")
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(f"{item.path}: {path.stat().st_size:,} bytes are over the limit of {MAX_BYTES:,}")
    return path.read_bytes()


def _pixels(image: Image.Image, processor: Any, name: str) -> OneImage:
    """As `Engine` prepares them."""
    check_fits(processor.image_processor, image, name)
    return read_image(processor, image)


def _reason(error: Exception, item: Item) -> str:
    """The error in one line, without the name that stands beside it anyway."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{item.path}: ")[:500]


def _chunks(items: Iterable[PlacedItem]) -> Iterator[list[PlacedItem]]:
    left = iter(items)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _in_order(work: Callable[[Any], Any], chunks: Iterable[Any], workers: int) -> Iterator[Any]:
    """`map(work, chunks)` in threads, a bounded number of chunks ahead of whoever takes the results."""
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    try:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > CHUNKS_PER_WORKER * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
