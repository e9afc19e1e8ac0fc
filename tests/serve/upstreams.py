"""Servers that stand in for an upstream: one that notes what it gets and answers as it is told to."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image

from safevlm.defenses import Defense, ImageFeatures
from safevlm.engine import Engine
from safevlm.serve.app import create_app
from safevlm.serve.fetching import Fetcher
from safevlm.serve.front import Front
from safevlm.serve.limits import Limits
from safevlm.serve.upstream import Upstream
from safevlm.types import Request, Verdict
from tests.serve.serving import NAME, Served, listening

THERE = "stock"
"""The upstream's name for the model."""
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": THERE,
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "A cup."}, "finish_reason": "stop", "logprobs": None}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    "theirs": {"kept": [1, 2.5, "ä"]},
}


def chunk(text: str, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    told = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": THERE, "choices": choices, **more}
    return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


def told_chunk(choice: dict[str, Any]) -> bytes:
    told = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": THERE, "choices": [choice]}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM = [b": hello\n\n", chunk("A "), chunk("c")[:9], chunk("c")[9:] + chunk("ü", theirs=1), DONE]
"""An answer in pieces that are no whole events."""
JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
Pieces = list[bytes]
HANGS = b""
"""A piece for which nothing comes any more."""
BREAKS_OFF = b"!"
"""A piece in whose place the connection ends."""
OK = 200


@dataclass
class Recorder:
    """An upstream that notes what it gets."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[bytes, bytes]] = field(default_factory=list)
    answer: tuple[int, tuple[bytes, bytes], Pieces] | None = None
    """What it answers, whatever was asked; none: as it should."""
    whole: Pieces | None = None
    """What it answers in place of `answer` where no stream was asked for."""
    has_left: bool = False
    """Whether a client went away while it was answered."""

    def reset(self) -> None:
        self.bodies.clear()
        self.headers.clear()
        self.answer, self.whole, self.has_left = None, None, False

    def says(self, *pieces: str, finish: str = "stop", usage: bool = False, **message: Any) -> None:
        """It answers so, whole and streamed alike. `usage`: a stream tells it too."""
        whole = {"role": "assistant", "content": "".join(pieces), **message}
        choice = {"index": 0, "message": whole, "finish_reason": finish}
        end = [told_chunk({"index": 0, "delta": message, "finish_reason": finish})]
        end += [chunk("", choices=[], usage=COMPLETION["usage"])] if usage else []
        self.answer = (OK, EVENTS, [*map(chunk, pieces), *end, DONE])
        self.whole = [json.dumps({**COMPLETION, "choices": [choice]}).encode()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/v1/models":
            await _answer(send, OK, JSON, [json.dumps({"data": [{"id": THERE}]}).encode()])
            return
        body = json.loads(raw)
        self.bodies.append(body)
        self.headers.append(dict(scope["headers"]))
        told = (OK, EVENTS, STREAM) if body.get("stream") else (OK, JSON, [json.dumps(COMPLETION).encode()])
        given = self.answer or told
        if self.whole is not None and not body.get("stream"):
            given = (OK, JSON, self.whole)
        answering = asyncio.ensure_future(_answer(send, *given))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        self.has_left = not answering.done()
        for each in (answering, leaving):
            each.cancel()
        if answering.done() and answering.exception() is not None:
            raise ConnectionError("broken off")

    def images(self) -> list[bytes]:
        """Pixels of all images that it got."""
        return [pixels(uri) for body in self.bodies for uri in _uris(body["messages"])]


async def _answer(send: Any, status: int, kind: tuple[bytes, bytes], pieces: Pieces) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [kind]})
    for piece in pieces:
        if piece == HANGS:
            await asyncio.sleep(30)
        if piece == BREAKS_OFF:
            raise ConnectionError
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


def _uris(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                yield part["image_url"]["url"]


def pixels(uri: str) -> bytes:
    """Of a PNG image, with its size."""
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return seen(Image.open(BytesIO(base64.b64decode(data))))


def seen(image: Image.Image) -> bytes:
    assert image.mode == "RGB"
    return repr(image.size).encode() + image.tobytes()


class Watching(Defense):
    """Notes the images that it looks at."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.asked: list[Request] = []

    def reset(self) -> None:
        self.seen.clear()
        self.asked.clear()

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        assert features.images == len(request.images)
        self.asked.append(request)
        self.seen += [seen(image) for image in request.images if isinstance(image, Image.Image)]
        return Verdict(source=self.name)


@contextmanager
def fronting(
    engine: Engine, url: str, *, key: str = "", fetcher: Fetcher | None = None, **limits: Any
) -> Iterator[Served]:
    """A guard in front of the server at `url`, until the block ends."""
    bounds = Limits(**limits)
    upstream = Upstream(url, key, bounds.seconds)
    front = Front(engine, NAME, bounds, fetcher=fetcher, upstream=upstream, upstream_model=THERE)
    with listening(create_app(front)) as address:
        yield Served(front, address)
