"""`POST /v1/moderations` of a guarded model: verdicts alone, in OpenAI's form."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from safevlm.serve import moderation
from safevlm.serve.connection import while_connected
from safevlm.serve.conversation import OpenedRequest, Places, opened_request
from safevlm.serve.errors import NO_STORE, ApiError
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.wire.chat import ChatMessage
from safevlm.serve.wire.moderations import ModerationsBody


def add_moderations(app: FastAPI, model: GuardedModel) -> None:
    """`POST /v1/moderations` of the guard in this process."""

    @app.post("/v1/moderations", response_model=None)
    async def moderations(body: ModerationsBody, request: Request) -> Response:
        return JSONResponse(await while_connected(request, moderated(model, body)), headers=NO_STORE)


class ModerationPlaces(Places):
    """The one message of an item is the input itself."""

    def image(self, turn: int, place: int) -> str:
        return f"{self.messages}[{place}].image_url.url"

    def told(self, message: str) -> str:
        return re.sub(r"messages\[\d+\](\.content)?", self.messages, message)


async def moderated(model: GuardedModel, body: ModerationsBody) -> dict[str, Any]:
    """One result for each string, and one for all parts. ApiError: something cannot be used, or a detector failed."""
    items = body.items()
    if len(items) > model.limits.messages:
        told = f"{len(items)} texts; this server takes {model.limits.messages}"
        raise ApiError(400, told, param="input", code="too_long")
    id = f"modr-{uuid.uuid4().hex}"
    opened = [await _opened(model, item, id) for item in items]
    together = min(model.limits.batch, model.limits.waiting)
    results: list[dict[str, Any]] = []
    for start in range(0, len(opened), together):
        results += await _results(model, opened[start : start + together])
    return {"id": id, "model": model.name, "results": results}


async def _results(model: GuardedModel, questions: Sequence[OpenedRequest]) -> list[dict[str, Any]]:
    looks = [asyncio.ensure_future(_result(model, question)) for question in questions]
    try:
        return await asyncio.gather(*looks)
    finally:
        for look in looks:  # where one fails the others are not waited for
            look.cancel()


async def _opened(model: GuardedModel, item: ChatMessage, id: str) -> OpenedRequest:
    return await opened_request([item], model.images, id, places=ModerationPlaces("input"))


async def _result(model: GuardedModel, question: OpenedRequest) -> dict[str, Any]:
    verdict = await model.look(question)
    if verdict.error:  # `flagged: false` would say that it is safe
        raise ApiError(500, "the detector failed, so nothing is known about the input", code="detector_failed")
    scores = moderation.scores(verdict, model.engine.taxonomy, bool(question.images))
    return moderation.with_standard(scores)
