"""A bare model that says what the test wrote down and keeps what it was asked; stands where the engine's `Ask` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from safevlm.types import Request


@dataclass
class Scripted:
    say: Callable[[Request, int], str]
    """A request and its place in the batch → the answer."""
    requests: list[Request] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    """Per call."""

    def __call__(self, requests: Sequence[Request], **options: Any) -> list[str]:
        self.requests += requests
        self.options.append(options)
        return [self.say(request, place) for place, request in enumerate(requests)]


def says(*answers: str) -> Scripted:
    """These answers, in order."""
    left = iter(answers)
    return Scripted(lambda request, place: next(left))
