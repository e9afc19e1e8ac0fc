"""Answers of the library that draws the page, changed on their way to the browser."""

from __future__ import annotations

import re

from starlette.responses import Response

from safevlm.serve.exchange import Message, Send
from safevlm.serve.page import paths
from safevlm.serve.page.visitors import COOKIE, new_visitor

FOREIGN = re.compile(rb'<link rel="manifest"[^>]*>|<meta (?:property|name)="(?:og|twitter):[^>]*>')
"""Of the page's head: an application of its own, and what a link to the page would show of the library's makers."""


class HeldAnswer:
    """An answer that is kept back until something was made of it."""

    def __init__(self, send: Send) -> None:
        self.status = 0
        self.body = b""
        self._send = send
        self._start: Message = {}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self._start = message["status"], message
        else:
            self.body += message.get("body", b"")

    async def release(self) -> None:
        length = (b"content-length", str(len(self.body)).encode())
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": self.body})


def without_foreign(page: bytes) -> bytes:
    """The head of the page, with nothing of others'."""
    return FOREIGN.sub(b"", page).replace(b"<head>", b'<head><link rel="icon" href="data:,">', 1)


def with_cookie(scheme: str, send: Send) -> Send:
    """An answer that gives a visitor a name."""
    named = Response()
    named.set_cookie(COOKIE, new_visitor(), path=paths.ROOT, secure=scheme == "https", httponly=True, samesite="lax")
    cookie = [(name, value) for name, value in named.raw_headers if name == b"set-cookie"]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *cookie]}
        await send(message)

    return sending
