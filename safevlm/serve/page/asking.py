"""A question of the page, asked as a chat completion is asked: same limits, same queue, same counters, same guard."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from safevlm.serve.access import CALLER
from safevlm.serve.chat_api import Answering
from safevlm.serve.errors import ApiError
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.page import bubbles
from safevlm.serve.page.offers import USUAL, Offers, PageChoice
from safevlm.serve.page.turns import messages, shown
from safevlm.serve.page.uploads import Uploads
from safevlm.serve.wire.chat import ChatBody
from safevlm.types import Reply

log = logging.getLogger(__name__)

Shown = list[str | dict[str, Any]]
"""What is said so far in answer to a question: bubbles, and the words of the model."""


@dataclass(frozen=True)
class PageQuestion:
    """What a visitor asks."""

    caller: str
    """Name of the visitor's key."""
    visitor: str
    """Name of the browser."""
    tab: str
    """Of this one page in it."""
    history: Sequence[Mapping[str, Any]]
    asked: Mapping[str, Any]
    """Text and files."""
    defense: str = USUAL
    policy: str = USUAL
    compares: bool = False


@dataclass
class Asker:
    """Answers questions; what goes wrong is said in one line."""

    model: GuardedModel
    uploads: Uploads
    offers: Offers = field(default_factory=Offers)

    async def answer(self, question: PageQuestion) -> AsyncGenerator[Shown]:
        """All that is shown, again and again while it grows."""
        so_far: Shown = []
        try:
            async with aclosing(self._shown(question)) as pieces:
                async for so_far in pieces:
                    yield so_far
        except ApiError as error:
            yield [*_settled(so_far), bubbles.trouble(error.message)]
        except Exception as error:  # noqa: BLE001 - a visitor is told that it failed, and the log has the cause
            log.error("the page could not answer", exc_info=error)
            yield [*_settled(so_far), bubbles.trouble("the request failed; the cause is in the server's log")]

    async def _shown(self, question: PageQuestion) -> AsyncGenerator[Shown]:
        choice = self.offers.choice(question.defense, question.policy)
        body = self._body(question)
        yield [bubbles.looking()]
        guarded: Shown = []
        async with aclosing(self._guarded(question, body, choice)) as pieces:
            async for guarded in pieces:
                yield guarded
        if question.compares and self.offers.bare is not None:
            yield [*guarded, bubbles.bare_begins()]
            async with aclosing(self._bare(question, body, PageChoice(self.offers.bare))) as bare:
                async for said in bare:
                    yield [*guarded, bubbles.bare(said)]

    async def _guarded(self, question: PageQuestion, body: ChatBody, choice: PageChoice) -> AsyncGenerator[Shown]:
        answering = await self._start(question, body, choice)
        opened, files = answering.question, [str(name) for name in question.asked.get("files") or ()]
        seen: Shown = []
        async with aclosing(answering.pieces):
            if len(opened.images) > 1 and files:
                new = dataclasses.replace(opened, images=opened.images[-len(files) :])
                verdicts = await self.model.look_at_each(new, choice.treatment)
                numbers = range(1, len(files) + 1) if len(files) > 1 else [None]
                seen = [bubbles.of_image(*each) for each in zip(numbers, files, verdicts, strict=True)]
                yield [*seen, bubbles.looking()]
            CALLER.set(question.caller)  # a yield may come back in another context
            text = ""
            async for heard in answering.heard(await answering.first()):
                if isinstance(heard, Reply):
                    lone = files[0] if len(files) == len(opened.images) == 1 else ""
                    yield [*seen, bubbles.told(heard, lone, len(opened.images)), shown(heard.text)]
                    return
                text += heard
                yield [*seen, bubbles.passed(), shown(text)]

    async def _bare(self, question: PageQuestion, body: ChatBody, choice: PageChoice) -> AsyncGenerator[str]:
        answering = await self._start(question, body, choice)
        async with aclosing(answering.pieces):
            text = ""
            async for heard in answering.heard(await answering.first()):
                text = heard.text if isinstance(heard, Reply) else text + heard
                yield text

    async def _start(self, question: PageQuestion, body: ChatBody, choice: PageChoice) -> Answering:
        CALLER.set(question.caller)
        return await Answering.start(self.model, body, "page-", treatment=choice.treatment, blocks=choice.blocks)

    def _body(self, question: PageQuestion) -> ChatBody:
        said = messages(
            question.history, question.asked, lambda name: self.uploads.uri(name, question.visitor, question.tab)
        )
        if not said[-1]["content"]:
            raise ApiError(400, "write a question, or add an image")
        try:
            return ChatBody.model_validate({"model": self.model.name, "messages": said, "stream": True})
        except ValidationError as error:
            raise ApiError(400, "this conversation cannot be read; clear the chat") from error


def _settled(shown: Shown) -> Shown:
    """Without bubbles that wait for something."""
    return [each for each in shown if isinstance(each, str) or each["metadata"].get("status") != "pending"]
