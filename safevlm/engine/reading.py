"""The images of requests, opened and made ready for the tower; of the batch that comes next, in a thread.

    model    | answers batch 1 | answers batch 2 | …
    thread   | reads batch 2   | reads batch 3   | …

One batch is read ahead and no more. What cannot be read is forgotten: whoever answers that batch reads it again, and
says which request is at fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from safevlm.data.pixels import Pixels, read_images
from safevlm.engine.checks import opened_images
from safevlm.types import Request


@dataclass(frozen=True)
class RequestImages:
    """Of some requests, one after the other; on the CPU."""

    pixels: Pixels | None
    """None: they have no image."""
    later: tuple[Pixels | None, ...]
    """Of each image the other frames or pages, where it has some and somebody looks at them."""


def images_of(requests: Sequence[Request], processor: Any, every_frame: bool) -> RequestImages:
    """ImageError: one that cannot be used; it names the request."""
    opened = list(opened_images(requests, processor, every_frame))
    pixels = None
    if opened:
        left = iter(opened)
        pixels = read_images(
            processor, [[each.image for each in islice(left, len(request.images))] for request in requests]
        )
    return RequestImages(pixels, tuple(each.later for each in opened))


class ReadAhead:
    """Reads the images of one batch while another is answered."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._begun: tuple[Sequence[Request], bool, Future[RequestImages]] | None = None

    def begin(self, requests: Sequence[Request], every_frame: bool) -> None:
        """Returns at once. A batch that was begun before, and that nobody took, is forgotten."""
        if self._begun is not None:
            self._begun[2].cancel()
        reading = self._thread.submit(images_of, requests, self._processor, every_frame)
        self._begun = (requests, every_frame, reading)

    def take(self, requests: Sequence[Request], every_frame: bool) -> RequestImages | None:
        """The images of the batch that was begun, once; None: others were, or one of them cannot be used."""
        begun = self._begun
        if begun is None or begun[1] != every_frame or not _are_same(begun[0], requests):
            return None
        self._begun = None
        return None if begun[2].exception() else begun[2].result()

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="safevlm-images")


def _are_same(begun: Sequence[Request], requests: Sequence[Request]) -> bool:
    """By identity: an image that the caller holds in memory has no equal."""
    return len(begun) == len(requests) and all(one is other for one, other in zip(begun, requests, strict=True))
