"""What a conversation is with: a model in this process, or one behind a server; both are asked in one way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from safevlm.types import Reply, Request


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, as far as the user said. None: as the model here, or its server, does it otherwise."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


AS_USUAL = Sampling()


@dataclass(frozen=True)
class ChatAnswer:
    """A reply, and what is known of how it came about."""

    reply: Reply
    account: tuple[str, ...]
    """For a person: what the guard saw and did, and what of it nobody told."""
    by: str
    """Who answered: the model or server, and the defense in front of it."""


class AnswerStream(Protocol):
    """An answer on its way. KeyboardInterrupt may come while it is read; `end` is called then too."""

    def __iter__(self) -> Iterator[str]:
        """Its pieces. ValueError: the question cannot be used; OSError, RuntimeError: the model or server failed."""
        ...

    def end(self) -> ChatAnswer | None:
        """Stops it where it still grows. The answer so far; None: nothing is known of it."""
        ...


class ChatPartner(Protocol):
    """Whom the user talks to."""

    @property
    def title(self) -> str:
        """The model or server, and the defense in front of it."""
        ...

    @property
    def defense(self) -> str:
        """As the user named it."""
        ...

    @property
    def policy(self) -> str | None:
        """File of the policy; None: the model's own."""
        ...

    def ask(self, request: Request, sampling: Sampling) -> AnswerStream:
        """Images of the request are `data:` URIs."""
        ...

    def behind(self, defense: str, policy: str | None) -> ChatPartner:
        """The same model behind another defense. ValueError: that cannot be."""
        ...

    def defenses(self) -> Sequence[str]:
        """Names that `behind` takes."""
        ...
