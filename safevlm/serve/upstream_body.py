"""The body that an upstream gets, written anew from what was read and looked at: never a client's own bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from safevlm.data.rendering import without_control_tokens
from safevlm.messages import Message
from safevlm.serve.conversation import OpenedRequest
from safevlm.serve.wire.chat import ImagePart, RefusalPart
from safevlm.serve.wire.front import NOT_SENT, FrontBody, FrontMessage
from safevlm.types import Request

Part = dict[str, Any]


def as_read(messages: Sequence[FrontMessage]) -> list[Message]:
    """The turns as the guard reads them: what a tool says is the user's side, and neighbours of a side are one turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "user" if message.role == "tool" else message.role
        parts = [{"type": "image_url", "image_url": {"url": "data:"}} for _ in message.images()]
        words = message.said()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += parts
            turns[-1]["words"] += [words]
        else:
            turns.append({"role": role, "content": parts, "words": [words]})
    return [_turn(**turn) for turn in turns]


def upstream_body(body: FrontBody, opened: OpenedRequest, rewritten: Request, model: str, processor: Any) -> Part:
    """What goes to the upstream: sampling fields as they were given, `rewritten`'s words, the looked-at images.

    ValueError: the defense rewrote more than the question and the system prompt, which has no place here.
    """
    if rewritten.history != opened.request.history:
        raise ValueError("the defense rewrote earlier turns, which a server in front cannot send")
    images = (image.data_uri() for image in opened.images)
    plain_text = functools.partial(without_control_tokens, processor)
    messages = [_message(message, images, plain_text) for message in body.messages]
    if rewritten.text != opened.request.text:
        words = body.messages[-1].text()
        messages[-1]["content"] = _reworded(messages[-1], words, opened.request.text, rewritten.text, plain_text)
    if rewritten.system != opened.request.system:
        leads = messages[0]["role"] in ("system", "developer")
        messages = [{"role": "system", "content": rewritten.system}, *messages[int(leads) :]]
    sent = body.model_dump(exclude=NOT_SENT, exclude_unset=True, by_alias=True)
    for field in ("tools", "response_format"):
        if field in sent:
            sent[field] = _plain_words(sent[field], plain_text)
    return {"model": model, "messages": messages, **sent}


def _message(message: FrontMessage, images: Iterator[str], plain_text: Callable[[str], str]) -> Part:
    content: str | list[Part] | None
    if isinstance(message.content, list):
        content = [_part(part, images, plain_text) for part in message.content]
    else:
        words = message.text()
        content = plain_text(words) if words or not message.tool_calls else None
    named = {"name": message.name, "tool_call_id": message.tool_call_id}
    sent: Part = {"role": message.role, "content": content}
    sent |= {key: plain_text(value) for key, value in named.items() if value}
    if message.tool_calls:
        sent["tool_calls"] = _plain_words([call.model_dump() for call in message.tool_calls], plain_text)
    return sent


def _part(part: Any, images: Iterator[str], plain_text: Callable[[str], str]) -> Part:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": next(images)}}
    return {"type": "text", "text": plain_text(part.refusal if isinstance(part, RefusalPart) else part.text)}


def _reworded(
    message: Part, words: str, asked: str, rewritten: str, plain_text: Callable[[str], str]
) -> str | list[Part]:
    """The last message in other words, its images first, as LLaVA reads them.

    `asked`: the last turn's words, of which `words`, the message's own, are the end.
    """
    if asked != words:  # neighbours of one side: what stands around the turn's words stands around the message's
        before, found, after = rewritten.partition(asked)
        rewritten = before + words + after if found else rewritten
    parts = message["content"] if isinstance(message["content"], list) else []
    images = [part for part in parts if part["type"] == "image_url"]
    text = plain_text(rewritten)
    return [*images, {"type": "text", "text": text}] if images else text


def _plain_words(value: Any, plain_text: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, dict):
        return {plain_text(key): _plain_words(each, plain_text) for key, each in value.items()}
    return [_plain_words(each, plain_text) for each in value] if isinstance(value, list) else value


def _turn(role: str, content: list[Part], words: list[str]) -> dict[str, Any]:
    text = "\n".join(filter(None, words))
    return {"role": role, "content": [*content, *([{"type": "text", "text": text}] if text else [])]}
