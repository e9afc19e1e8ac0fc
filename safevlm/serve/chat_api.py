"""`POST /v1/chat/completions` of a guarded model."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from safevlm.files.text import short
from safevlm.serve import moderation
from safevlm.serve.conversation import CHAT, OpenedRequest, Places, generation_of, opened_request
from safevlm.serve.deployment import Treatment
from safevlm.serve.errors import ApiError
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.wire.chat import ChatBody
from safevlm.types import Reply

DONE = "data: [DONE]\n\n"
NO_OUTPUT_GUARD = "this server has no guard of answers; start it with --output-guard"


@dataclass(frozen=True)
class Answering:
    """One completion on its way."""

    model: GuardedModel
    body: ChatBody
    id: str
    created: int
    pieces: AsyncGenerator[str | Reply]
    question: OpenedRequest

    @classmethod
    async def start(
        cls,
        model: GuardedModel,
        body: ChatBody,
        kind: str = "chatcmpl-",
        places: Places = CHAT,
        *,
        blocks: bool = False,
        treatment: Treatment | None = None,
    ) -> Answering:
        """`kind`: how the id begins. `blocks`, `treatment`: as `GuardedModel.begin`. ApiError: what cannot be answered,
        before the first byte is sent."""
        check_asked(model, body)
        id = f"{kind}{uuid.uuid4().hex}"
        question = await opened_request(body.messages, model.images, id, places=places)
        generation = generation_of(body, model.most_tokens)
        blocks, output = blocks or body.asks("input") == "block", body.asks("output")
        pieces = model.answer(
            question, generation, is_streamed=body.stream, blocks=blocks, output=output, treatment=treatment
        )
        return cls(model, body, id, int(time.time()), pieces, question)

    async def whole(self) -> dict[str, Any]:
        """The completion in one piece."""
        reply = await self.reply()
        is_refused = bool(reply.refused_by)
        message = {
            "role": "assistant",
            "content": None if is_refused else reply.text,
            "refusal": reply.text if is_refused else None,
        }
        choice = {"index": 0, "message": message, "finish_reason": finish_of(reply), "logprobs": None}
        told = {"usage": usage_of(reply), **self.moderated(reply)}
        return self._envelope("chat.completion", [choice]) | told

    async def first(self) -> str | Reply:
        """What is heard first; ApiError: nothing will be, which is still told by the status."""
        return await anext(self.pieces)

    async def events(self, first: str | Reply) -> AsyncIterator[str]:
        """The completion as server-sent events. What goes wrong on the way is an event too, and no `[DONE]` follows."""
        try:
            yield self._event([_choice({"role": "assistant", "content": ""})])
            async for heard in self.heard(first):
                if isinstance(heard, str):
                    yield self._event([_choice({"content": heard})])
                    continue
                if heard.refused_by:
                    yield self._event([_choice({"refusal": heard.text})])
                yield self._event([_choice({}, finish_of(heard))])
                if told := self.moderated(heard):
                    yield self._event([], **told)
                options = self.body.stream_options
                if options is not None and options.include_usage:
                    yield self._event([], usage=usage_of(heard))
            yield DONE
        except ApiError as error:
            yield f"data: {json.dumps(error.body)}\n\n"
        finally:
            await self.pieces.aclose()

    async def heard(self, first: str | Reply) -> AsyncIterator[str | Reply]:
        """All words of the answer, piece by piece, and last the reply; a refusal's words stand in the reply alone."""
        async for heard in preceded(first, self.pieces):
            if isinstance(heard, Reply) and self.model.engine.defense.reviews and not heard.refused_by and heard.text:
                yield heard.text
            yield heard

    async def reply(self) -> Reply:
        """The reply, once it is there."""
        async with aclosing(self.pieces) as pieces:
            async for heard in pieces:
                if isinstance(heard, Reply):
                    return heard
        raise ApiError(500, "the model gave no answer")

    def moderated(self, reply: Reply) -> dict[str, Any]:
        """`moderation` of an answer; empty where it was not asked for."""
        if self.body.moderation is None:
            return {}
        told: dict[str, Any] = {"input": None, "output": None}
        if self.body.asks("input") is not None:
            told["input"] = moderation.inline(reply, self.model.engine.taxonomy, self.model.name)
        if self.body.asks("output") is not None:
            has_guard = self.model.output_guard is not None
            unguarded = None if has_guard else moderation.failed(NO_OUTPUT_GUARD, "not_available")
            told["output"] = moderation.of_answer(reply, self.model.name) or unguarded
        return {"moderation": told}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps(self._envelope('chat.completion.chunk', choices) | more, ensure_ascii=False)}\n\n"

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name, "choices": choices}


def check_asked(model: GuardedModel, body: ChatBody) -> None:
    """ApiError: another model, or a moderation that this server has not."""
    if body.model != model.name:
        raise ApiError(
            404, f"no model {short(body.model)}; this server has {model.name!r}", param="model", code="model_not_found"
        )
    if body.asks("output") == "block" and model.output_guard is None:
        raise ApiError(400, NO_OUTPUT_GUARD, param="moderation.policy.output", code="not_available")


async def preceded(first: str | Reply, others: AsyncIterator[str | Reply]) -> AsyncIterator[str | Reply]:
    yield first
    async for other in others:
        yield other


def finish_of(reply: Reply) -> str:
    return "content_filter" if reply.refused_by else reply.ended or "stop"


def usage_of(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.answer_tokens,
        "total_tokens": reply.prompt_tokens + reply.answer_tokens,
    }


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
