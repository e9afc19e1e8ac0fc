"""`POST /v1/responses` of a guard in front of another server, which is asked for a chat completion."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response

from safevlm.serve.connection import while_connected
from safevlm.serve.front import Front
from safevlm.serve.front_chat import answering_anew, written
from safevlm.serve.responses_api import KIND, ResponseAnswer, places_of
from safevlm.serve.wire.front import FrontBody
from safevlm.serve.wire.responses import ResponsesBody

UNKNOWN: Mapping[str, float | None] = {"temperature": None, "top_p": None}
"""How the upstream's model answers where the request does not say it."""


def add_front_responses(app: FastAPI, front: Front) -> None:
    """`POST /v1/responses` of the model at the upstream."""

    @app.post("/v1/responses", response_model=None)
    async def responses(body: ResponsesBody, request: Request) -> Response:
        return await while_connected(request, response_to(front, body))


async def response_to(front: Front, body: ResponsesBody) -> Response:
    """The response, once its first piece is there. ApiError: what cannot be answered."""
    answering = await answering_anew(front, front_body(body), KIND, places_of(body))
    return await written(ResponseAnswer(body, answering, UNKNOWN), answering)


def front_body(body: ResponsesBody) -> FrontBody:
    """The same, as a chat that the upstream may be asked; of a stream it tells the usage too."""
    told = body.chat().model_dump(exclude_none=True)
    usage = {"stream_options": {"include_usage": True}} if body.stream else {}
    return FrontBody.model_validate(told | usage)
