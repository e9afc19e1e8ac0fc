"""Who is logged in at the page. A browser holds a random number, never the key."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from safevlm.serve.access import KeyCheck
from safevlm.serve.page.visitors import cookie

COOKIE = "safevlm-page"
SECONDS = 12 * 3600
MOST = 1024
"""Sessions; the oldest goes first."""


class Sessions:
    """Keys that were given, by the cookie of their session. A key is checked anew whenever it is used."""

    def __init__(self, keys: KeyCheck, now: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._now = now
        self._open: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def caller(self, cookies: str) -> str:
        """Name of the key behind a `Cookie` header; also where nobody needs one. ApiError 401."""
        began, key = self._open.get(cookie(cookies, COOKIE), (0.0, ""))
        return self._check(key if self._now() - began < SECONDS else "")

    def begin(self, key: str) -> str:
        """The cookie's value for someone who gave a key. ApiError 401: there is no such key."""
        self._check(key)
        session = secrets.token_urlsafe(32)
        self._open[session] = (self._now(), key)
        while len(self._open) > MOST:
            self._open.popitem(last=False)
        return session

    def end(self, cookies: str) -> None:
        self._open.pop(cookie(cookies, COOKIE), None)

    def _check(self, key: str) -> str:
        return self._keys.check({b"authorization": b"Bearer " + key.encode("latin-1", "replace")})
