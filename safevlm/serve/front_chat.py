"""`POST /v1/chat/completions` of a guard in front of another server: that server's own bytes, or a refusal."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from safevlm.serve.chat_api import Answering, check_asked
from safevlm.serve.connection import while_connected
from safevlm.serve.conversation import opened_request
from safevlm.serve.errors import NO_STORE, ApiError
from safevlm.serve.front import Front
from safevlm.serve.looking import LetThrough
from safevlm.serve.server_events import ServerEvent
from safevlm.serve.upstream_body import as_read
from safevlm.serve.wire.front import FrontBody
from safevlm.types import Reply

EVENTS = "text/event-stream"
JSON = "application/json"
ENVELOPE = ("id", "object", "created", "model")
"""Fields that all chunks of a completion share."""


def add_front_chat(app: FastAPI, front: Front) -> None:
    """`POST /v1/chat/completions` of the model at the upstream."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: FrontBody, request: Request) -> Response:
        return await while_connected(request, response_to(front, body))


async def response_to(front: Front, body: FrontBody) -> Response:
    """The response, once its first piece is there. ApiError: what cannot be answered."""
    check_asked(front, body)
    id = f"chatcmpl-{uuid.uuid4().hex}"
    question = await opened_request(body.messages, front.images, id, as_read(body.messages))
    pieces = front.passing(body, question)
    try:
        decided = await anext(pieces)
        assert isinstance(decided, Reply)
        answering = Answering(front, body, id, int(time.time()), _one(decided))
        moderated = answering.moderated(decided)
        first = await anext(pieces) if isinstance(decided, LetThrough) else None
        if isinstance(first, ServerEvent) and body.stream:
            return PassingResponse(first, pieces, moderated)
        await pieces.aclose()
    except BaseException:
        await pieces.aclose()
        raise
    if isinstance(first, ServerEvent):
        content = json.dumps(first.told | moderated).encode() if moderated else first.raw
        return Response(content, media_type=JSON, headers=NO_STORE)
    if body.stream:
        return StreamingResponse(answering.events(await answering.first()), media_type=EVENTS, headers=NO_STORE)
    return JSONResponse(await answering.whole(), headers=NO_STORE)


class PassingResponse(StreamingResponse):
    """The upstream's events. When the client goes away its call ends at once, not when the garbage is collected."""

    def __init__(
        self,
        first: ServerEvent,
        pieces: AsyncGenerator[Reply | ServerEvent],
        moderated: dict[str, Any],
    ) -> None:
        self.pieces = pieces
        self.events = passed(first, pieces, moderated)
        super().__init__(self.events, media_type=EVENTS, headers=NO_STORE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.pieces), aclosing(self.events):
            await super().__call__(scope, receive, send)


async def passed(
    first: ServerEvent, pieces: AsyncGenerator[Reply | ServerEvent], moderated: dict[str, Any]
) -> AsyncGenerator[bytes]:
    """Events as they came, and in front of the last one what is `moderated`, in a chunk of its own.

    What goes wrong on the way is an event, and no `[DONE]` follows.
    """
    envelope: dict[str, Any] = {}
    event: Reply | ServerEvent | None = first
    try:
        while isinstance(event, ServerEvent):
            envelope = envelope or {key: event.told[key] for key in ENVELOPE if key in event.told}
            if event.is_last and moderated:
                yield _event(envelope | {"choices": []} | moderated)
            if event.raw:
                yield event.raw
            event = await anext(pieces, None)
    except ApiError as error:
        yield _event(error.body)


async def _one(reply: Reply) -> AsyncGenerator[str | Reply]:
    yield reply


def _event(told: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(told)}\n\n".encode()
