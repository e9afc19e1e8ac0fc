"""One request's messages within bounds: how many bytes its body has, how long it takes, how long a write takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from safevlm.serve.errors import ApiError, busy
from safevlm.serve.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DROPPED = 2
"""Times as many bytes as a body may have are still read of one that is too large, so that its sender hears why."""


class Room:
    """Bytes of bodies that all requests in progress hold together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, count: int) -> None:
        """ApiError 429: no room."""
        if self.held + count > self.most:
            raise busy()
        self.held += count

    def free(self, count: int) -> None:
        self.held -= count


class Exchange:
    """What is received and sent for one request."""

    def __init__(
        self, headers: Mapping[bytes, bytes], receive: Receive, send: Send, limits: Limits, room: Room
    ) -> None:
        self.has_started = False
        """Whether a part of the answer was sent."""
        self.is_read = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        """Whether the whole body was received."""
        self.held = 0
        """Bytes of the body so far."""
        self._receive = receive
        self._send = send
        self._limits = limits
        self._room = room
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds

    async def receive(self) -> Message:
        """ApiError 408, 413, 429: the body comes too slowly, is too large, or there is no room for it."""
        if self.is_read:  # what is waited for now is that the client goes away
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self._limits.body_seconds
            raise ApiError(408, f"the body did not come within {seconds:g} seconds", code="too_slow") from error
        count = len(message.get("body", b""))
        if self.held + count > self._limits.body_bytes:
            raise too_large(self._limits.body_bytes)
        self._room.take(count)
        self.held += count
        self.is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """TimeoutError: the client reads nothing for longer than a request may last."""
        self.has_started = True
        if message["type"] == "http.response.start":
            await self._drain()
        if message["type"] == "http.response.start" and not self.is_read:  # nobody waits for what is left of the body
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        async with asyncio.timeout(self._limits.seconds):
            await self._send(message)

    async def _drain(self) -> None:
        """Drops what is left of a body that is not wanted, within its bounds: a client that still writes when the line
        is closed never sees the answer."""
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                while not self.is_read and dropped <= DROPPED * self._limits.body_bytes:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    self.is_read = not message.get("more_body", False)

    def close(self) -> None:
        """It is over, and its room is free."""
        self._room.free(self.held)
        self.held = 0


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most:,} bytes", code="too_large")
