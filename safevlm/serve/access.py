"""Who may ask, from where, and how much at once: keys, host names, the type and the size of a body."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from safevlm.serve.errors import ApiError
from safevlm.serve.exchange import App, Exchange, Receive, Room, Scope, Send, too_large
from safevlm.serve.limits import Limits

OPEN = ("/healthz",)
"""Answered without a key."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "testserver")
JSON = "application/json"


NOBODY = ""
"""Name of keys that no file names."""
CALLER: ContextVar[str] = ContextVar("caller", default=NOBODY)
"""Name of the key that the request in progress came with. Here and not an argument, so that no route can forget it and
answer by somebody else's policy."""


class KeyCheck(Protocol):
    def check(self, headers: dict[bytes, bytes]) -> str:
        """Name of the key that a request came with. ApiError 401."""


class Keys:
    """API keys, kept as hashes; none: everybody may ask."""

    def __init__(self, keys: Iterable[str], named: Mapping[str, bytes] | None = None) -> None:
        """`keys`: in clear, and nobody's in particular. `named`: SHA-256 by name."""
        self._digests = [(NOBODY, _digest(key)) for key in keys] + list((named or {}).items())

    def check(self, headers: dict[bytes, bytes]) -> str:
        """All keys are compared, each in constant time."""
        if not self._digests:
            return NOBODY
        given = headers.get(b"authorization", b"")
        bearer = given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        asked = _digest(bearer.decode("latin-1"))
        matches = [(hmac.compare_digest(asked, known), name) for name, known in self._digests]
        found = [name for is_same, name in matches if is_same]
        if not found:
            raise ApiError(401, "no such API key; send it as `Authorization: Bearer KEY`", code="invalid_api_key")
        return found[-1]


def is_loopback(host: str) -> bool:
    """Whether a server at this address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Lets through what may be asked, and of a body no more than its bounds.

    A browser page of anybody may post to a server on loopback; so there a request must name a local host, which
    rebinding of a name cannot do, and be typed as JSON, which a page of another origin cannot send.
    """

    def __init__(
        self,
        app: App,
        keys: KeyCheck,
        limits: Limits,
        is_local: bool,
        refuse: Callable[..., Any],
        has_own_door: Callable[[str], bool],
    ) -> None:
        """`refuse(error)`: the ASGI response for an ApiError. `has_own_door`: whether a path has keys and types of
        bodies of its own, checked behind this."""
        self.app = app
        self.keys = keys
        self.limits = limits
        self.is_local = is_local
        self.refuse = refuse
        self.has_own_door = has_own_door
        self.room = Room(limits.held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        exchange = Exchange(headers, receive, send, self.limits, self.room)
        try:
            self._check(scope, headers)
            await self.app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            if exchange.has_started:
                raise
            await self.refuse(error)(scope, exchange.receive, exchange.send)
        finally:
            exchange.close()

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self.is_local:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if name.strip("[]") not in LOCAL_NAMES:
                raise ApiError(403, f"this server answers to local names only, not to {name[:60]!r}", code="host")
        if b"transfer-encoding" in headers and b"content-length" in headers:
            raise ApiError(400, "a body has a length or comes in chunks, and not both", code="two_lengths")
        has_own_door = self.has_own_door(scope["path"])
        if scope["path"] not in OPEN and not has_own_door:
            CALLER.set(self.keys.check(headers))
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
            if kind != JSON and not has_own_door:
                raise ApiError(415, f"send the body as {JSON}", code="content_type")
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length[:20]) > self.limits.body_bytes:
                raise too_large(self.limits.body_bytes)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
