"""`POST /v1/chat/completions` of a guard in front of another server: that server's own bytes, or a refusal."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol, cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from safevlm.serve.chat_api import Answering, check_asked
from safevlm.serve.connection import while_connected
from safevlm.serve.conversation import CHAT, OpenedRequest, Places, opened_request
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
    if front.judges_first(body):
        answering = await answering_anew(front, body)
        return await written(answering, answering)
    question = await opened(front, body)
    pieces = front.passing(body, question)
    try:
        decided = await anext(pieces)
        assert isinstance(decided, Reply)
        answering = Answering(front, body, question.request.id, int(time.time()), _one(decided), question)
        if not isinstance(decided, LetThrough):
            await pieces.aclose()
            return await written(answering, answering)
        if body.stream:
            return StreamedAnswer(passed(decided, await anext(pieces), pieces, answering.moderated), pieces)
        return Response(await _whole(decided, pieces, answering.moderated), media_type=JSON, headers=NO_STORE)
    except BaseException:
        await pieces.aclose()
        raise


async def answering_anew(front: Front, body: FrontBody, kind: str = "chatcmpl-", places: Places = CHAT) -> Answering:
    """The upstream's words on their way, to be written as if its model were here; as `Answering.start`."""
    check_words_alone(body)
    question = await opened(front, body, kind, places)
    return Answering(front, body, question.request.id, int(time.time()), front.said(body, question), question)


async def opened(front: Front, body: FrontBody, kind: str = "chatcmpl-", places: Places = CHAT) -> OpenedRequest:
    """`kind`: how its id begins. ApiError: what cannot be answered."""
    check_asked(front, body)
    id = f"{kind}{uuid.uuid4().hex}"
    return await opened_request(body.messages, front.images, id, as_read(body.messages), places=places)


class Writes(Protocol):
    """Gives an answer its form."""

    async def whole(self) -> dict[str, Any]: ...

    def events(self, first: str | Reply) -> AsyncIterator[str]: ...


async def written(answer: Writes, answering: Answering) -> Response:
    """In one piece, or as events once the first piece is there, as the request wants it."""
    if answering.body.stream:
        return StreamedAnswer(answer.events(await answering.first()), answering.pieces)
    return JSONResponse(await answer.whole(), headers=NO_STORE)


def check_words_alone(body: FrontBody) -> None:
    """ApiError: it wants more than words of an answer, and words alone are judged."""
    wanted = {
        "tools": bool(body.tools) and body.tool_choice != "none",
        "logprobs": bool(body.logprobs or body.top_logprobs),
    }
    for param, is_wanted in wanted.items():
        if is_wanted:
            raise ApiError(
                400,
                f"{param}: this answer is judged before it is sent, and only its words are; leave it out",
                param=param,
                code="not_available",
            )


class StreamedAnswer(StreamingResponse):
    """Events. When the client goes away the upstream's call ends at once, not when the garbage is collected."""

    def __init__(self, events: AsyncIterator[str | bytes], *sources: AsyncGenerator[Any]) -> None:
        """`sources`: what the events come from."""
        super().__init__(events, media_type=EVENTS, headers=NO_STORE)
        self._open = (*sources, events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            for each in self._open:
                if isinstance(each, AsyncGenerator):
                    stack.push_async_callback(each.aclose)
            await super().__call__(scope, receive, send)


async def passed(
    decided: Reply,
    first: Reply | ServerEvent,
    pieces: AsyncGenerator[Reply | ServerEvent],
    moderated: Callable[[Reply], dict[str, Any]],
) -> AsyncGenerator[bytes]:
    """Events as they came, and in front of the last one what is `moderated`, in a chunk of its own.

    What goes wrong on the way is an event, and no `[DONE]` follows.
    """
    envelope: dict[str, Any] = {}
    reply, event = decided, cast("Reply | ServerEvent | None", first)
    try:
        while event is not None:
            if isinstance(event, Reply):
                reply = event
                event = await anext(pieces, None)
                continue
            envelope = envelope or {key: event.told[key] for key in ENVELOPE if key in event.told}
            if event.is_last and (told := moderated(reply)):
                yield _event(envelope | {"choices": []} | told)
            if event.raw:
                yield event.raw
            event = await anext(pieces, None)
    except ApiError as error:
        yield _event(error.body)


async def _whole(
    reply: Reply, pieces: AsyncGenerator[Reply | ServerEvent], moderated: Callable[[Reply], dict[str, Any]]
) -> bytes:
    """The upstream's answer as it came, or with what is `moderated`."""
    content = b""
    async for piece in pieces:
        if isinstance(piece, Reply):
            reply = piece
        else:
            told = moderated(reply)
            content = json.dumps(piece.told | told).encode() if told else piece.raw
    return content


async def _one(reply: Reply) -> AsyncGenerator[str | Reply]:
    yield reply


def _event(told: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(told)}\n\n".encode()
