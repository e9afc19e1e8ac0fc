"""Requests in the queue of a guard whose model is somewhere else: they are looked at together, and not answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event

from safevlm.engine import BatchRequest, Engine
from safevlm.types import Reply, Request, Verdict


@dataclass(frozen=True)
class LetThrough(Reply):
    """No answer yet: the words in which the model is to be asked."""

    rewritten: Request = field(kw_only=True)


class Looking:
    """An engine that settles requests by its defense's decisions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def reply_each(self, asked: Sequence[BatchRequest], stop: Event | None = None) -> list[Reply]:
        """Refusals, and `LetThrough`. ValueError: a request that cannot be used."""
        decided = self.engine.decide_all([each.request for each in asked])
        return [
            each if isinstance(each, Reply) else LetThrough("", each.request, each.verdict, rewritten=each.rewritten)
            for each in decided
        ]

    def look(self, request: Request) -> Verdict:
        return self.engine.look(request)
