"""Server-sent events of another server: whole ones only, as they came, each looked into."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from safevlm.serve.errors import ApiError

ENDS = (b"\r\n\r\n", b"\n\n")
"""Of an event. One that ends in another way is waited for in vain, and nothing of it is passed on."""
DONE = b"[DONE]"
CHUNK = "chat.completion.chunk"


@dataclass(frozen=True)
class ServerEvent:
    """One event."""

    raw: bytes
    """As it came, its end included."""
    told: dict[str, Any] = field(default_factory=dict)
    """A chunk of a completion; empty for a comment, and for the last event."""
    is_last: bool = False

    @property
    def finishes(self) -> bool:
        """Whether a chunk says why the answer is over."""
        choices = self.told.get("choices", ())
        return any(isinstance(choice, dict) and choice.get("finish_reason") is not None for choice in choices)


async def events_of(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[ServerEvent]:
    """Up to the last event. ApiError 502: none came, or one has more than `most` bytes or no known shape.

    A server that writes no `[DONE]` (`transformers serve` 5.23) has said its last when the answer has its finish
    reason and the response has its proper end; the last event is then empty.
    """
    held, is_finished = b"", False
    async for piece in pieces:
        held += piece
        while (end := _end(held)) is not None:
            event = event_of(held[:end])
            held = held[end:]
            yield event
            if event.is_last:
                return
            is_finished = is_finished or event.finishes
        if len(held) > most:
            raise unknown_shape(f"an event of more than {most:,} bytes")
    if is_finished and not held.strip():
        yield ServerEvent(held, is_last=True)
        return
    raise ApiError(502, "the upstream's answer ended before its end", code="upstream_broke_off")


def event_of(raw: bytes) -> ServerEvent:
    """ApiError 502: neither a comment, nor a chunk of a completion, nor the end."""
    lines = [line for line in raw.splitlines() if line and not line.startswith(b":")]
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    if not lines:
        return ServerEvent(raw)
    if data == DONE:
        return ServerEvent(raw, is_last=True)
    told = told_in(data)
    if "error" in told:
        raise ApiError(502, "the upstream failed while it answered", code="upstream_failed")
    if told.get("object") != CHUNK or not isinstance(told.get("choices"), list):
        raise unknown_shape(f"an event that is no {CHUNK}")
    return ServerEvent(raw, told)


def told_in(data: bytes) -> dict[str, Any]:
    """ApiError 502: no JSON table."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise unknown_shape("what is no JSON") from error
    if not isinstance(told, dict):
        raise unknown_shape("JSON that is no table")
    return told


def unknown_shape(what: str) -> ApiError:
    return ApiError(502, f"the upstream answered with {what}", code="upstream_shape")


def _end(held: bytes) -> int | None:
    """Where the first event ends; None: it has not ended yet."""
    found = [at + len(end) for end in ENDS if (at := held.find(end)) >= 0]
    return min(found, default=None)
