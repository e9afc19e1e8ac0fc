"""Images that visitors send: in a folder of the page's own, which goes away with it; each of them goes earlier.

An image is its sender's alone. It goes with the page that showed it, soon after that is closed; one that no open page
holds goes after an hour.
"""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from safevlm.serve.errors import ApiError, busy

PREFIX = "safevlm-page-"
GRACE, AGE = 60.0, 3600.0
"""Seconds: after a page was closed, or its connection lost; and of an image that no page was open for."""
LEAST = 1 << 16
"""Bytes that every file counts as."""


@dataclass
class _Upload:
    """One visitor's hold on a file."""

    at: float
    size: int
    tabs: set[str] = field(default_factory=set)
    """Pages in which it was asked about."""


class Uploads:
    """Files of all visitors."""

    def __init__(self, most: int, grace: float = GRACE, now: Callable[[], float] = time.monotonic) -> None:
        """`most`: bytes of all of them. `grace`: as `GRACE`."""
        self._holder = tempfile.TemporaryDirectory(prefix=PREFIX)  # 0700
        self.folder = Path(self._holder.name).resolve()
        self._most, self._grace, self._now = most, grace, now
        self._uploads: dict[tuple[str, str], _Upload] = {}
        """By visitor and path."""
        self._examples: set[str] = set()
        self._open: set[tuple[str, str]] = set()
        """Visitors and their pages."""
        self._closed: dict[tuple[str, str], float] = {}

    def add_example(self, name: str, image: Image) -> Path:
        """An image of the page's own, which everybody may use and which stays."""
        path = self.folder / name
        image.save(path)
        self._examples.add(str(path))
        return path

    def check_room(self) -> None:
        """ApiError 429: no room for another file."""
        if sum(max(upload.size, LEAST) for upload in self._uploads.values()) >= self._most:
            raise busy()

    def keep(self, visitor: str, names: Iterable[str]) -> None:
        """Files that a visitor sent."""
        for name in names:
            with suppress(OSError):
                self._uploads[visitor, name] = _Upload(self._now(), Path(name).stat().st_size)

    def is_own(self, visitor: str, name: str) -> bool:
        """Whether a visitor sent the file of this name, or it is an example."""
        return name in self._examples or (visitor, name) in self._uploads

    def uri(self, name: str, visitor: str, tab: str) -> str:
        """`data:` URI of a file that a visitor asks about in a page. ApiError: it is not the visitor's, or is gone."""
        if not self.is_own(visitor, name):
            raise ApiError(400, "an image of this conversation is gone; clear the chat and send it again")
        try:
            data = Path(name).read_bytes()
        except OSError as error:
            raise ApiError(400, "an image of this conversation is gone; clear the chat and send it again") from error
        if upload := self._uploads.get((visitor, name)):
            upload.tabs.add(tab)
        return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"

    def opened(self, visitor: str, tab: str) -> None:
        """A page is there, again perhaps."""
        self._open.add((visitor, tab))
        self._closed.pop((visitor, tab), None)

    def closed(self, visitor: str, tab: str) -> None:
        """A page is gone, unless its connection comes back."""
        self._open.discard((visitor, tab))
        self._closed[visitor, tab] = self._now()

    def forget(self, visitor: str, tab: str) -> None:
        """Removes what was asked about in a page and in no other; where the visitor has no other, all."""
        has_others = any(other == visitor and page != tab for other, page in self._open | self._closed.keys())
        for (owner, name), upload in list(self._uploads.items()):
            if owner == visitor and (upload.tabs <= {tab} and (upload.tabs or not has_others)):
                self._remove(owner, name)
            upload.tabs.discard(tab)

    def sweep(self) -> None:
        """Removes what nobody needs any more."""
        now = self._now()
        for (visitor, tab), since in list(self._closed.items()):
            if now - since >= self._grace:
                self.forget(visitor, tab)
                del self._closed[visitor, tab]
        at_work = {visitor for visitor, _ in self._open | self._closed.keys()}
        for (visitor, name), upload in list(self._uploads.items()):
            if visitor not in at_work and now - upload.at >= AGE:
                self._remove(visitor, name)

    def close(self) -> None:
        self._holder.cleanup()

    def _remove(self, visitor: str, name: str) -> None:
        """A file that two visitors sent stays for the other one."""
        del self._uploads[visitor, name]
        if not any(other == name for _, other in self._uploads):
            Path(name).unlink(missing_ok=True)
            with suppress(OSError):
                Path(name).parent.rmdir()
