"""The guard that a gateway asks before it asks a model: `POST /beta/litellm_basic_guardrail_api` of LiteLLM, which the
action for NeMo Guardrails (`safevlm.serve.nemo`) asks as well.

The answer is `NONE`, `BLOCKED`, or `GUARDRAIL_INTERVENED` with the texts in which the model is to be asked. Whatever
goes wrong is `BLOCKED` and no error status, since the proxy can be set up to go on after errors.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from safevlm.serve.connection import while_connected
from safevlm.serve.conversation import OpenedRequest, Places, opened_request
from safevlm.serve.errors import NO_STORE, ApiError
from safevlm.serve.front import check_engine
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.looking import LetThrough
from safevlm.serve.wire.chat import ChatMessage, ImagePart, ImageUrl, TextPart
from safevlm.serve.wire.gateway import PATH, GatewayBody, SpokenTurn, has_room, turns_of
from safevlm.types import Request as Asked

Answer = dict[str, Any]
PASSED: Answer = {"action": "NONE"}


def add_gateways(app: FastAPI, model: GuardedModel) -> None:
    """The guard of this process, for gateways."""

    @app.post(PATH, response_model=None)
    async def guardrail(body: GatewayBody, request: Request) -> Response:
        return JSONResponse(await while_connected(request, answer_to(model, body)), headers=NO_STORE)


async def answer_to(model: GuardedModel, body: GatewayBody) -> Answer:
    """What the gateway is to do."""
    try:
        return await (_of_answer if body.input_type == "response" else _of_request)(model, body)
    except ApiError as error:
        return blocked(error.message)


def blocked(reason: str) -> Answer:
    return {"action": "BLOCKED", "blocked_reason": reason}


@dataclass(frozen=True)
class GatewayPlaces(Places):
    """Turns are several messages of the body, whose images have places of their own."""

    images: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def image(self, turn: int, place: int) -> str:
        return self.images[turn, place]


async def _of_request(model: GuardedModel, body: GatewayBody) -> Answer:
    turns = turns_of(body)
    decided = await _decided(model, turns)
    if not isinstance(decided, LetThrough):
        return blocked(decided.text)
    if decided.rewritten == decided.request:
        return PASSED
    texts = reworded(body, turns, decided.request, decided.rewritten)
    if texts is None:
        return blocked("the guard adds a hint to the question, and there are no words to which it could be added")
    return {"action": "GUARDRAIL_INTERVENED", "texts": texts}


async def _of_answer(model: GuardedModel, body: GatewayBody) -> Answer:
    """Words are judged where there is a guard of answers; an image that a model made is looked at like another one."""
    if body.images:
        shown = GatewayBody(input_type="request", images=body.images)
        looked = await _of_request(model, shown)
        if looked["action"] != "NONE":
            return blocked(looked.get("blocked_reason", "the guard objects to an image of the answer"))
    if body.model_extra:
        turns_of(body)
    text = "\n".join(body.texts)
    if model.output_guard is None or not text.strip():
        return PASSED
    asked = [turn for turn in turns_of(body.model_copy(update={"texts": [], "images": []})) if turn.side == "user"]
    question = OpenedRequest(Asked("\n".join(asked[-1].words) if asked else "", id=_id()), ())
    reply = await model.judge(question, text)
    return blocked(reply.text) if reply.refused_by else PASSED


async def _decided(model: GuardedModel, turns: Sequence[SpokenTurn]) -> Any:
    try:
        check_engine(model.deployment.treatment().acting)
    except ValueError as error:
        raise ApiError(500, str(error), code="not_available") from error
    places = {(turn, place): told for turn, spoken in enumerate(turns) for place, (told, _) in enumerate(spoken.images)}
    messages = [_message(turn) for turn in turns]
    return await model.decide(
        await opened_request(messages, model.images, _id(), places=GatewayPlaces("messages", images=places))
    )


def _message(turn: SpokenTurn) -> ChatMessage:
    images = [ImagePart(type="image_url", image_url=ImageUrl(url=url)) for _, url in turn.images]
    return ChatMessage(role=turn.side, content=[*images, TextPart(type="text", text="\n".join(turn.words))])


def reworded(body: GatewayBody, turns: Sequence[SpokenTurn], asked: Asked, rewritten: Asked) -> list[str] | None:
    """The texts with the last one of the user's as the defense wants it asked; where the last turn has no words, the
    system's gets the hint, or the empty text that stands there for it. None: no text could say it.
    """
    texts = body.texts
    if (rewritten.history, rewritten.system) != (asked.history, asked.system):
        return None
    sides = ([turns[-1].words] if turns[-1].words else []) or [turn.words for turn in turns if turn.side == "system"]
    places = [index for index, text in enumerate(texts) if text and any(text in words for words in sides)]
    places = places or ([0] if has_room(body) else [])
    if not places:
        return None
    last = places[-1]
    before, found, after = rewritten.text.partition(asked.text) if asked.text else ("", "", "")
    plain = rewritten.text if asked.text else "\n".join(filter(None, (texts[last], rewritten.text)))
    return [*texts[:last], before + texts[last] + after if found else plain, *texts[last + 1 :]]


def _id() -> str:
    return f"grd-{uuid.uuid4().hex}"
