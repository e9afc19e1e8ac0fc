"""The model as the judge of its own answers: it is asked in the wording of the defense `self-check`.

Here it waits for its turn in the queue; at an upstream it is one more request.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

from safevlm.data.chat import messages_of
from safevlm.data.rendering import without_control_tokens
from safevlm.defenses.self_check import VERDICT_TOKENS, SelfCheck, Wording
from safevlm.engine import Engine
from safevlm.serve.batches import Batches, Waiting
from safevlm.serve.flat_images import FlatImage
from safevlm.serve.output_guard import AnswerVerdict
from safevlm.serve.upstream import Upstream
from safevlm.types import Generation, Reply, Request

HARMFUL = "harmful"


class SelfJudge:
    """Asks in the model's own queue, in front of new requests, since an answer waits for it."""

    def __init__(self, engine: Engine, batches: Batches, wording: Wording, seconds: float) -> None:
        self._bare = engine.behind("none")
        self._batches = batches
        self._wording = wording
        self._seconds = seconds

    async def __call__(self, request: Request, text: str) -> AnswerVerdict:
        asked = dataclasses.replace(request, text=self._wording.tell.format(question=request.text, reply=text))
        waiting = Waiting(self._bare, asked, Generation(VERDICT_TOKENS), is_streamed=False)
        try:
            self._batches.put(waiting, is_first=True)
            async for heard in waiting.heard(self._seconds):
                if isinstance(heard, Reply):
                    return _judgement(self._wording, heard.text)
        finally:
            waiting.leave()
        raise RuntimeError("the model gave no judgement")


class UpstreamSelfJudge:
    """Asks the model where it is: at the upstream."""

    def __init__(self, upstream: Upstream, model: str, processor: Any, wording: Wording) -> None:
        """`model`: the upstream's name of it. `processor`: knows the model's control tokens, which stay words."""
        self._upstream = upstream
        self._model = model
        self._processor = processor
        self._wording = wording

    async def __call__(self, request: Request, text: str) -> AnswerVerdict:
        asked = dataclasses.replace(request, text=self._wording.tell.format(question=request.text, reply=text))
        messages = await asyncio.to_thread(self._messages, asked)  # encoding images would hold up every other request
        sent = {"model": self._model, "messages": messages, "max_tokens": VERDICT_TOKENS, "temperature": 0}
        _, told = await self._upstream.complete(sent)
        return _judgement(self._wording, told["choices"][0]["message"].get("content") or "")

    def _messages(self, asked: Request) -> list[dict[str, Any]]:
        images = iter(asked.images)
        return [
            {**message, "content": [self._part(part, images) for part in message["content"]]}
            for message in messages_of(asked)
        ]

    def _part(self, part: dict[str, Any], images: Iterator[Any]) -> dict[str, Any]:
        if part["type"] == "image":
            return {"type": "image_url", "image_url": {"url": FlatImage(next(images), "").data_uri()}}
        return {"type": "text", "text": without_control_tokens(self._processor, part["text"])}


def _judgement(wording: Wording, said: str) -> AnswerVerdict:
    is_harmful = wording.read(said) == HARMFUL
    return AnswerVerdict(SelfCheck.name, is_harmful, {HARMFUL: is_harmful}, {HARMFUL: float(is_harmful)})


def wording_of(engine: Engine, name: str) -> Wording:
    """Of `self-check` or `self-check=FILE`. ValueError: the file cannot be used."""
    defense = engine.behind(name).defense
    assert isinstance(defense, SelfCheck)
    return defense.wording
