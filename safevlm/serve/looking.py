"""Requests in the queue of a guard whose model is somewhere else: they are looked at together, and not answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event

from safevlm.engine import BatchRequest, Decision, Engine
from safevlm.serve.acting import Monitoring
from safevlm.types import Reply, Request, Verdict


@dataclass(frozen=True)
class LetThrough(Reply):
    """No answer yet: the words in which the model is to be asked."""

    rewritten: Request = field(kw_only=True)


@dataclass(frozen=True)
class Looking:
    """An engine that settles requests by its defense's decisions."""

    engine: Engine

    def reply_each(self, asked: Sequence[BatchRequest], stop: Event | None = None) -> list[Reply]:
        """Refusals, and `LetThrough`. ValueError: a request that cannot be used."""
        return [self._reply(each) for each in self.engine.decide_all([each.request for each in asked])]

    def _reply(self, decided: Decision | Reply) -> Reply:
        if isinstance(decided, Reply):
            return decided
        reply = LetThrough("", decided.request, decided.verdict, rewritten=decided.rewritten)
        defense = self.engine.defense
        return defense.review(reply.request, reply, reply.verdict) if isinstance(defense, Monitoring) else reply

    def look(self, request: Request) -> Verdict:
        return self.engine.look(request)
