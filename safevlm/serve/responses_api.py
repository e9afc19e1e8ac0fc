"""`POST /v1/responses` of a guarded model: the same answers as in a chat, as items and events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from safevlm.serve.chat_api import Answering, finish_of
from safevlm.serve.connection import while_connected
from safevlm.serve.conversation import Places
from safevlm.serve.errors import NO_STORE, ApiError
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.wire.responses import ResponsesBody
from safevlm.types import Reply

REASONS = {"content_filter": "content_filter", "length": "max_output_tokens"}
"""Why an answer is incomplete, by a chat's finish reason."""
GREEDY: Mapping[str, float | None] = {"temperature": 0.0, "top_p": 1.0}
"""How this model answers where the request does not say it."""
KIND = "resp_"
"""How ids begin."""


def add_responses(app: FastAPI, model: GuardedModel) -> None:
    """`POST /v1/responses` of the model in this process."""

    @app.post("/v1/responses", response_model=None)
    async def responses(body: ResponsesBody, request: Request) -> Response:
        answer = await ResponseAnswer.start(model, body)
        if body.stream:
            first = await while_connected(request, answer.answering.first())
            return StreamingResponse(answer.events(first), media_type="text/event-stream", headers=NO_STORE)
        return JSONResponse(await while_connected(request, answer.whole()), headers=NO_STORE)


@dataclass(frozen=True)
class ResponseAnswer:
    """One response on its way."""

    body: ResponsesBody
    answering: Answering
    sampling: Mapping[str, float | None]
    """What a response tells of `temperature` and `top_p` where the request does not say it."""
    item_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")

    @classmethod
    async def start(cls, model: GuardedModel, body: ResponsesBody) -> ResponseAnswer:
        """ApiError: what cannot be answered, before the first byte is sent."""
        return cls(body, await Answering.start(model, body.chat(), KIND, places_of(body)), GREEDY)

    async def whole(self) -> dict[str, Any]:
        """The response in one piece."""
        reply = await self.answering.reply()
        return self._ended(reply, [_part_of(reply)])

    async def events(self, first: str | Reply) -> AsyncIterator[str]:
        """The response as server-sent events, numbered from 0; the last one holds all of it.

        What goes wrong on the way is an `error` event, which the client raises, and nothing follows.
        """
        parts = _Parts(self.item_id)
        try:
            for kind in ("response.created", "response.in_progress"):
                yield parts.event(kind, response=self._response("in_progress"))
            item = self._item("in_progress", [])
            yield parts.event("response.output_item.added", output_index=0, item=item)
            async for heard in self.answering.heard(first):
                if isinstance(heard, str):
                    for event in parts.say("output_text", heard):
                        yield event
                    continue
                for event in parts.end(heard):
                    yield event
                ended = self._ended(heard, parts.whole)
                yield parts.event("response.output_item.done", output_index=0, item=ended["output"][0])
                yield parts.event(f"response.{ended['status']}", response=ended)
        except ApiError as error:
            told = error.body["error"]
            yield parts.event("error", code=error.code, message=error.message, param=error.param, error=told)
        finally:
            await self.answering.pieces.aclose()

    def _ended(self, reply: Reply, parts: list[dict[str, Any]]) -> dict[str, Any]:
        reason = REASONS.get(finish_of(reply))
        status = "incomplete" if reason else "completed"
        return self._response(status) | {
            "completed_at": None if reason else time.time(),
            "incomplete_details": {"reason": reason} if reason else None,
            "output": [self._item(status, parts)],
            "usage": usage_of(reply),
            **_without_lists(self.answering.moderated(reply)),
        }

    def _item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": parts}

    def _response(self, status: str) -> dict[str, Any]:
        body = self.body
        return {
            "id": self.answering.id,
            "object": "response",
            "created_at": self.answering.created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": self.answering.model.name,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": self.sampling["temperature"] if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.sampling["top_p"] if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def places_of(body: ResponsesBody) -> Places:
    """What errors call the messages of a body's chat."""
    return Places("input", before=int(bool(body.instructions)), url=".image_url")


class _Parts:
    """The events of an answer's parts: each begins, grows and is done before the next one begins."""

    def __init__(self, item_id: str) -> None:
        self.whole: list[dict[str, Any]] = []
        """Parts that have begun; the last one may grow."""
        self._item_id = item_id
        self._number = -1

    def event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        told = {"type": kind, "sequence_number": self._number, **fields}
        return f"event: {kind}\ndata: {json.dumps(told, ensure_ascii=False)}\n\n"

    def say(self, kind: str, words: str) -> list[str]:
        """More words of the part of this kind, which begins where another one stood, or none."""
        events = []
        if not self.whole or self.whole[-1]["type"] != kind:
            events += [*self._done(), self._begun(kind)]
        self.whole[-1][WORDS[kind]] += words
        if words:
            events.append(self._of_part(f"response.{kind}.delta", delta=words))
        return events

    def end(self, reply: Reply) -> list[str]:
        """The end of all parts; a refusal is one more."""
        said = self.say("refusal", reply.text) if reply.refused_by else []
        if not reply.refused_by and not self.whole:
            said = self.say("output_text", "")
        return [*said, *self._done()]

    def _begun(self, kind: str) -> str:
        self.whole.append(_part(kind, ""))
        return self._of_part("response.content_part.added", part=self.whole[-1])

    def _done(self) -> list[str]:
        if not self.whole:
            return []
        part = self.whole[-1]
        kind, words = part["type"], WORDS[part["type"]]
        return [
            self._of_part(f"response.{kind}.done", **{words: part[words]}),
            self._of_part("response.content_part.done", part=part),
        ]

    def _of_part(self, kind: str, **fields: Any) -> str:
        told: dict[str, Any] = {"logprobs": []} if kind.startswith("response.output_text.") else {}
        place = {"item_id": self._item_id, "output_index": 0, "content_index": len(self.whole) - 1}
        return self.event(kind, **place, **fields, **told)


WORDS = {"output_text": "text", "refusal": "refusal"}
"""Where a part's words stand."""


def _part(kind: str, words: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, WORDS[kind]: words, **more}


def _part_of(reply: Reply) -> dict[str, Any]:
    return _part("refusal" if reply.refused_by else "output_text", reply.text)


def _without_lists(told: dict[str, Any]) -> dict[str, Any]:
    """A chat's `moderation` has a list of results; a response's has the one result in its place."""
    if not told:
        return told
    sides = {
        side: result["results"][0] if result and "results" in result else result
        for side, result in told["moderation"].items()
    }
    return {"moderation": sides}


def usage_of(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": reply.answer_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": reply.prompt_tokens + reply.answer_tokens,
    }
