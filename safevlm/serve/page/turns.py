"""What the page's conversation holds → a chat completion's messages.

Bubbles are the page's own words and no turns. A question that has no answer is left out, images and all: nobody sees
them then, neither guard nor model.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from safevlm.serve.errors import ApiError

Content = list[dict[str, Any]]
Uri = Callable[[str], str]
"""Of a file by its name. ApiError: it cannot be had."""


def messages(history: Sequence[Mapping[str, Any]], question: Mapping[str, Any], uri: Uri) -> list[dict[str, Any]]:
    """`question`: its text and its files. ApiError: an image that is gone, or what is no turn."""
    turns: list[dict[str, Any]] = []
    waiting: Content = []
    is_open = False
    """Whether what waits may still grow: a question comes as one message or as several."""
    for message in history:
        is_user = message.get("role") == "user"
        if is_user:
            waiting = (waiting if is_open else []) + list(_content(message.get("content"), uri))
        elif waiting and not is_bubble(message):
            turns += [_user(waiting), {"role": "assistant", "content": _words(message)}]
            waiting = []
        is_open = is_user
    asked = [_image(uri(str(name))) for name in question.get("files") or ()]
    text = str(question.get("text") or "").strip()
    return [*turns, _user([*asked, *([_text(text)] if text else [])])]


def is_bubble(message: Mapping[str, Any]) -> bool:
    """Whether a message is the page's own."""
    return bool((message.get("metadata") or {}).get("title"))


def _user(content: Content) -> dict[str, Any]:
    return {"role": "user", "content": sorted(content, key=lambda part: part["type"] == "text")}


def shown(words: str) -> str:
    """The model's words as the page shows them: what they hold of HTML is no part of the page."""
    return html.escape(words, quote=False)


def _words(message: Mapping[str, Any]) -> str:
    return html.unescape("\n".join(part["text"] for part in _content(message.get("content"), _no_file)))


def _content(content: object, uri: Uri) -> Iterator[dict[str, Any]]:
    for part in content if isinstance(content, Sequence) and not isinstance(content, str) else [content]:
        if isinstance(part, str):
            yield _text(part)
            continue
        held = part.get("file") or part if isinstance(part, Mapping) else {}
        if isinstance(held, Mapping) and isinstance(held.get("path"), str):
            yield _image(uri(held["path"]))
        elif isinstance(held, Mapping) and isinstance(held.get("text"), str):
            yield _text(held["text"])
        else:
            raise ApiError(400, "this conversation holds what is neither text nor an image; clear the chat")


def _no_file(name: str) -> str:
    raise ApiError(400, "this conversation holds an answer that is no text; clear the chat")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(uri: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri}}
