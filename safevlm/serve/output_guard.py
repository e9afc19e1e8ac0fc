"""The guard of answers: a judge reads what the model said before the client does, or beside it.

    block   nothing is sent before it was judged: the whole answer, or windows of some characters
    score   everything is sent at once, and the judgement is told, counted and recorded afterwards

What was sent is never taken back in silence: a block behind it ends the answer with a refusal that says so. A judge
that fails, that takes too long or that cannot be read refuses the answer in `block`, and is an error in `score`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from safevlm.defenses import prompts
from safevlm.serve.wire.base import Mode
from safevlm.types import Reply, Request

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Judgements in threads at a time."""
Heard = TypeVar("Heard")


@dataclass(frozen=True)
class AnswerVerdict:
    """What a judge saw in an answer."""

    source: str
    """Name of the judge."""
    flagged: bool = False
    categories: Mapping[str, bool] = field(default_factory=dict)
    """In the judge's own words."""
    scores: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    """Why nothing is known of the answer: `failed`, `timeout`, `busy` or `unreadable`."""

    @property
    def lets_through(self) -> bool:
        return not self.flagged and not self.error

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "judge": self.source,
            "flagged": self.flagged,
            "categories": dict(self.categories),
            "scores": {name: float(score) for name, score in self.scores.items()},
            "error": self.error,
        }


@dataclass(frozen=True)
class JudgedReply(Reply):
    """A reply with what the guard of answers saw in it."""

    output: AnswerVerdict = field(kw_only=True)


AnswerJudge = Callable[[Request, str], Awaitable[AnswerVerdict]]
"""Judges an answer, or its beginning. Whatever it raises is a judge that failed."""


@dataclass
class OutputGuard:
    """A judge, and what is done about its judgements."""

    name: str
    judge: AnswerJudge
    mode: Mode = "block"
    window: int | None = None
    """Characters that are held back in a stream until they are judged, together with all before them; None: all."""
    seconds: float = 60.0
    """For one judgement."""
    most: int = 128
    """Judgements in progress; what comes on top of them is `busy`."""
    running: int = 0

    def mode_of(self, asked: Mode | None) -> Mode:
        """The stricter one of the server's mode and a request's."""
        return "block" if "block" in (self.mode, asked) else "score"

    async def verdict(self, request: Request, text: str) -> AnswerVerdict:
        """Of an answer, or of its beginning. Never raises: a judge without a judgement is an `error`."""
        if not text.strip():
            return AnswerVerdict(self.name)
        if self.running >= self.most:
            return AnswerVerdict(self.name, error="busy")
        self.running += 1
        try:
            async with asyncio.timeout(self.seconds):
                return _sound(await self.judge(request, text))
        except TimeoutError:
            return AnswerVerdict(self.name, error="timeout")
        except Exception as error:  # noqa: BLE001 - a guard that breaks in any way must not let the answer through
            log.error("the guard of answers %s failed (%s)", self.name, type(error).__name__)
            return AnswerVerdict(self.name, error="failed")
        finally:
            self.running -= 1

    async def held_back(
        self, request: Request, pieces: AsyncIterator[Heard], stop: Callable[[], None]
    ) -> AsyncGenerator[Heard | str | Reply]:
        """An answer's pieces once they are judged, and last the reply, or a refusal in its place.

        `stop`: ends the answer, since nobody will read the rest; its reply is waited for all the same.
        """
        released = held = ""
        found: AnswerVerdict | None = None
        async for heard in pieces:
            if isinstance(heard, Reply):
                if heard.refused_by:  # the model said nothing
                    yield heard
                    return
                if found is None or found.lets_through and heard.text != released:
                    found = await self.verdict(request, heard.text)
                if found.lets_through and held:
                    yield held
                yield judged(heard, found) if found.lets_through else self.refused(heard, found, bool(released))
                return
            if not isinstance(heard, str):
                yield heard
                continue
            held += heard
            if self.window is None or len(held) < self.window or (found is not None and not found.lets_through):
                continue
            found = await self.verdict(request, released + held)
            if found.lets_through:
                yield held
                released, held = released + held, ""
            else:
                stop()

    def refused(self, reply: Reply, found: AnswerVerdict, has_begun: bool) -> JudgedReply:
        """In the answer's place. `has_begun`: its beginning was sent."""
        text = prompts.ANSWER_ENDED if has_begun else prompts.ANSWER_WITHHELD
        told = f"the guard of answers {self.name} {'failed' if found.error else 'objected'}"
        text = prompts.ANSWER_UNCHECKED if found.error and not has_begun else text
        refused = dataclasses.replace(reply, text=text, refused_by=self.name, trace=(*reply.trace, told))
        return judged(refused, found)


def judged(reply: Reply, found: AnswerVerdict) -> JudgedReply:
    """The reply with what was seen in it."""
    fields = {each.name: getattr(reply, each.name) for each in dataclasses.fields(Reply)}
    return JudgedReply(**fields, output=found)


def in_threads(assess: Callable[[Request, str], AnswerVerdict], at_once: int = AT_ONCE) -> AnswerJudge:
    """A judge that waits for others. One that hangs keeps its thread, so that further judgements time out too."""
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="safevlm-judge")

    async def judge(request: Request, text: str) -> AnswerVerdict:
        return await asyncio.get_running_loop().run_in_executor(pool, assess, request, text)

    return judge


def _sound(found: AnswerVerdict) -> AnswerVerdict:
    """TypeError, ValueError: what a judge gave can be read as no judgement."""
    if not isinstance(found, AnswerVerdict) or not isinstance(found.flagged, bool):
        raise TypeError("a judge gave no judgement")
    if not all(math.isfinite(score) for score in found.scores.values()):
        raise ValueError("a judge gave a score that is no number")
    return found
