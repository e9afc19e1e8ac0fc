"""`POST /beta/litellm_basic_guardrail_api`: the body, as the LiteLLM proxy writes it of a client's request.

The proxy hands messages on as clients wrote them, so they are read loosely; but whatever may carry media in a form that
is not read here is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from safevlm.serve.errors import ApiError
from safevlm.serve.wire.base import Wire

PATH = "/beta/litellm_basic_guardrail_api"
Turn = Literal["system", "user", "assistant"]
SIDES: dict[str, Turn] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "user",
    "function": "user",
    "assistant": "assistant",
}
"""Whose side a role speaks for."""
CALLS = ("tool_calls", "function_call")
"""Of a message: words of the assistant."""
MESSAGE = ("role", "content", "name", "refusal", "tool_call_id", "cache_control", "annotations", "type", "id", "status")
TEXT = ("type", "text", "refusal", "cache_control", "annotations", "logprobs")
IMAGE = ("type", "image_url", "detail", "cache_control")
IMAGE_URL = ("url", "detail", "format")
TEXT_KINDS = ("text", "input_text", "output_text", "refusal")
IMAGE_KINDS = ("image_url", "input_image")
LONGEST = 120
"""Characters of a place that a reason repeats."""


class GatewayBody(Wire):
    model_config = ConfigDict(extra="allow", strict=True)

    input_type: Literal["request", "response"]
    texts: list[str] = []
    images: list[str] = []
    """`data:` URIs or URLs. Of some requests the images stand in `structured_messages` alone."""
    structured_messages: list[dict[str, Any]] = []
    """OpenAI messages."""
    tools: Any = None
    tool_calls: Any = None
    model: Any = None
    request_data: Any = None
    request_headers: Any = None
    litellm_call_id: Any = None
    litellm_trace_id: Any = None
    litellm_version: Any = None
    additional_provider_specific_params: Any = None


def has_room(body: GatewayBody) -> bool:
    """Whether its one text is an empty one, in the user's last message: a place for words where there are none."""
    last = body.structured_messages[-1] if body.structured_messages else {}
    parts = last.get("content")
    is_users = last.get("role") == "user" and isinstance(parts, list)
    return is_users and body.texts == [""] and any(part.get("text") == "" for part in parts or [])


@dataclass
class SpokenTurn:
    """What one side says until the other one does."""

    side: Turn
    words: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    """Place in the body, and URL."""


def turns_of(body: GatewayBody) -> list[SpokenTurn]:
    """All that a body says and shows; what stands in two of its fields counts once.

    ApiError: something that cannot be read, and so not be seen.
    """
    if body.model_extra:
        raise _unread(next(iter(body.model_extra)))
    turns: list[SpokenTurn] = []
    for index, message in enumerate(body.structured_messages):
        _add(turns, _turn(message, f"structured_messages[{index}]"))
    said = "\n".join(word for turn in turns for word in turn.words)
    seen = {url for turn in turns for _, url in turn.images}
    shown = {url: f"images[{index}]" for index, url in enumerate(body.images) if url not in seen}
    rest = [(place, url) for url, place in shown.items()]
    _add(turns, SpokenTurn("user", [text for text in body.texts if text not in said], rest))
    return turns


def _add(turns: list[SpokenTurn], turn: SpokenTurn) -> None:
    """A system's words in the middle of a conversation belong to the user's side, as far as the guard is concerned."""
    if not turn.words and not turn.images:
        return
    if turn.side == "system" and any(before.side != "system" for before in turns):
        turn.side = "user"
    if turns and turns[-1].side == turn.side:
        turns[-1].words += turn.words
        turns[-1].images += turn.images
    else:
        turns.append(turn)


def _turn(message: Mapping[str, Any], place: str) -> SpokenTurn:
    _check_keys(message, (*MESSAGE, *CALLS), place)
    role = message.get("role")
    if not isinstance(role, str) or role not in SIDES:
        raise _unread(f"{place}.role")
    turn = SpokenTurn(SIDES[role])
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if not isinstance(parts, list):
        raise _unread(f"{place}.content")
    for index, part in enumerate(parts):
        _read_part(turn, part, f"{place}.content[{index}]")
    extra = [message.get("refusal"), *(json.dumps(message[key]) for key in CALLS if message.get(key))]
    turn.words += [words for words in extra if isinstance(words, str) and words]
    return turn


def _read_part(turn: SpokenTurn, part: Any, place: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in TEXT_KINDS:
        _check_keys(part, TEXT, place)
        words = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(words, str):
            raise _unread(place)
        turn.words += [words] if words else []
    elif kind in IMAGE_KINDS:
        _check_keys(part, IMAGE, place)
        turn.images.append((f"{place}.image_url", _url(part.get("image_url"), f"{place}.image_url")))
    else:
        raise _unread(place)


def _url(held: Any, place: str) -> str:
    """A string, or an object with `url`."""
    if isinstance(held, Mapping):
        _check_keys(held, IMAGE_URL, place)
        held = held.get("url")
    if not isinstance(held, str):
        raise _unread(place)
    return held


def _check_keys(table: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    unknown = [key for key, value in table.items() if key not in known and value is not None]
    if unknown:
        raise _unread(f"{place}.{unknown[0]}")


def _unread(place: str) -> ApiError:
    return ApiError(400, f"{place[:LONGEST]}: the guard cannot read it, so it is not let through")
