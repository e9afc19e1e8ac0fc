"""Turns as chat templates read them. No processor is needed here, so whoever reads records brings no model library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safevlm.types import Request

Message = dict[str, Any]


def user(text: str, images: int = 0) -> Message:
    """A user's turn with `images` images in front of the text."""
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def system(text: str) -> Message:
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def messages_of(request: Request) -> list[Message]:
    """A request as turns; the images of a turn stand before its words."""
    turns = [system(request.system)] if request.system else []
    *earlier, last = [user(question, images) for question, images in request.turns]
    for question, (_, answer) in zip(earlier, request.history, strict=True):
        turns += [question, assistant(answer)]
    return [*turns, last]


def with_line(messages: Sequence[Message], line: str) -> tuple[Message, ...]:
    """The same turns with one more line below the last question."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    return tuple(_longer(message, line) if index == last else message for index, message in enumerate(messages))


def _longer(message: Message, line: str) -> Message:
    images = sum(part["type"] == "image" for part in message["content"])
    text = next(part["text"] for part in message["content"] if part["type"] == "text")
    return user(f"{text}\n{line}", images)
