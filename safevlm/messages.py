"""OpenAI chat messages → a conversation, or an error that names the message: nothing is dropped or guessed.

    [{"role": "system", "content": "Be brief."},
     {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}},
                                  {"type": "text", "text": "What is it?"}]},
     {"role": "assistant", "content": "A cup."},
     {"role": "user", "content": "Is it red?"}]

At most one system message, first; then user and assistant in turn. Images are `data:` URIs, in user messages only;
within a turn they stand before its words, as LLaVA-v1.5 was trained. `detail` is accepted and changes nothing: the
model has one resolution. Fields that are null count as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, object]
SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant")


@dataclass(frozen=True)
class Spoken:
    """One message, read."""

    text: str
    images: tuple[str, ...] = ()
    """`data:` URIs."""


@dataclass(frozen=True)
class Conversation:
    """Messages, read."""

    questions: tuple[Spoken, ...]
    answers: tuple[str, ...]
    """As many as questions, or one fewer."""
    system: str = ""


def read(messages: Sequence[Message]) -> Conversation:
    """Checks and reads messages. TypeError: a value of the wrong type; ValueError: a message that cannot be used."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: {_shown(messages)} is not a list of messages")
    system, questions, answers = "", list[Spoken](), list[str]()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role, spoken = _message(message, where)
        if role in SYSTEM:
            if index:
                raise ValueError(f"{where}: a {role} message must be the first one, and there is at most one")
            system = spoken.text
        elif role == "user":
            if len(questions) > len(answers):
                raise ValueError(f"{where}: two user messages in a row; put an assistant message between, or join them")
            questions.append(spoken)
        else:
            if len(questions) == len(answers):
                raise ValueError(f"{where}: an assistant message must follow a user message")
            answers.append(spoken.text)
    return Conversation(tuple(questions), tuple(answers), system)


def _message(message: object, where: str) -> tuple[str, Spoken]:
    if not isinstance(message, Mapping):
        raise TypeError(f'{where}: {_shown(message)} is not a message; write {{"role": "user", "content": "…"}}')
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}: unknown role {role!r}; one of {list(ROLES)} (tools are not supported)")
    _check_keys(message, ("role", "content"), where)
    spoken = _content(message.get("content"), where)
    if spoken.images and role != "user":
        raise ValueError(f"{where}: an image in a message of the {role}; images belong to a user or a tool")
    if not spoken.text and not spoken.images:
        raise ValueError(f"{where}: the {role} message is empty; leave it out, or give it words")
    return str(role), spoken


def _content(content: object, where: str) -> Spoken:
    if isinstance(content, str):
        return Spoken(content)
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise TypeError(f"{where}.content: {_shown(content)} is neither text nor a list of parts")
    texts, images = [], []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping):
            raise TypeError(f'{place}: {_shown(part)} is not a part; write {{"type": "text", "text": "…"}}')
        if kind == "text":
            texts.append(_text(part, place))
        elif kind == "image_url":
            images.append(_image(part, place))
        else:
            raise ValueError(f"{place}: unknown type {kind!r}; one of ['text', 'image_url']")
    return Spoken(" ".join(texts), tuple(images))


def _text(part: Message, where: str) -> str:
    _check_keys(part, ("type", "text"), where)
    text = part.get("text")
    if not isinstance(text, str):
        raise TypeError(f"{where}.text: {_shown(text)} is not text")
    return text


def _image(part: Message, where: str) -> str:
    _check_keys(part, ("type", "image_url"), where)
    table = part.get("image_url")
    if not isinstance(table, Mapping):
        raise TypeError(
            f'{where}.image_url: {_shown(table)} is not a table; write {{"url": "data:image/png;base64,…"}}'
        )
    _check_keys(table, ("url", "detail"), f"{where}.image_url")
    url = table.get("url")
    if not isinstance(url, str):
        raise TypeError(f"{where}.image_url.url: {_shown(url)} is not text")
    if not url.startswith("data:"):
        raise ValueError(
            f"{where}.image_url.url: {_shown(url)} is no data: URI; nothing is fetched from the network or "
            "read from the disk for a message, so give the image's bytes as data:image/png;base64,…"
        )
    return url


def _check_keys(table: Message, known: Sequence[str], where: str) -> None:
    unknown = [key for key, value in table.items() if key not in known and value is not None]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; this tool reads {list(known)} only")


def _shown(value: object) -> str:
    """Short enough for an error message; a data URI can have megabytes."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
