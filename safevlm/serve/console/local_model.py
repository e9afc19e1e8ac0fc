"""A model in this process, behind a defense that can be changed while it stays loaded."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from threading import Event

from safevlm.defenses import DEFENSES
from safevlm.engine import BatchRequest, Engine
from safevlm.engine.growing import OnText
from safevlm.engine.streaming import pieces
from safevlm.serve.choice import behind
from safevlm.serve.console.account import why
from safevlm.serve.console.partners import ChatAnswer, Sampling
from safevlm.types import MAX_SEED, Generation, Reply, Request


class LocalModel:
    """A `ChatPartner`."""

    def __init__(self, engine: Engine, defense: str = "auto", policy: str | None = None) -> None:
        """`defense`, `policy`: what the engine was loaded with."""
        self.engine = engine
        self.defense = defense
        self.policy = policy

    @property
    def title(self) -> str:
        return f"{self.engine.loaded.path} behind {self.engine.defense.name}"

    def ask(self, request: Request, sampling: Sampling) -> LocalAnswer:
        return LocalAnswer(self.engine, request, generation(sampling), self.title)

    def behind(self, defense: str, policy: str | None) -> LocalModel:
        engine = behind(self.engine, defense, policy, is_new=policy != self.policy)
        return LocalModel(engine, defense, policy)

    def defenses(self) -> Sequence[str]:
        return list(DEFENSES)


class LocalAnswer:
    """An `AnswerStream` that a thread generates."""

    def __init__(self, engine: Engine, request: Request, how: Generation, by: str) -> None:
        self._engine = engine
        self._asked = (request, how)
        self._by = by
        self._stop = Event()
        self._replies: list[Reply] = []
        self._pieces = self._said()

    def __iter__(self) -> Generator[str]:
        return self._pieces

    def end(self) -> ChatAnswer | None:
        self._pieces.close()
        return ChatAnswer(self._replies[0], why(self._replies[0]), self._by) if self._replies else None

    def _said(self) -> Generator[str]:
        def generate(on_text: OnText) -> None:
            self._replies += self._engine.reply_each([BatchRequest(*self._asked, on_text)], self._stop)

        yield from pieces(generate, self._stop)


def generation(sampling: Sampling) -> Generation:
    """Greedy unless a temperature is given; without a seed every answer is drawn anew."""
    usual, temperature = Generation(), sampling.temperature or 0.0
    seed = secrets.randbelow(MAX_SEED) if sampling.seed is None and temperature else sampling.seed or 0
    return Generation(
        max_new_tokens=sampling.max_new_tokens or usual.max_new_tokens,
        temperature=temperature,
        top_p=usual.top_p if sampling.top_p is None else sampling.top_p,
        seed=seed,
    )
