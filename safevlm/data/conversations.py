"""A record's conversation and images, in the layouts that trainers of vision-language models write.

    LLaVA, LLaMA-Factory    conversations: [{from, value}]     image: PATH or [PATH, …]     system: TEXT
    ms-swift, TRL, OpenAI   messages: [{role, content}]        images: [IMAGE, …]
    TRL                     prompt: [message, …], completion: [message, …]

`content` is a text or a list of parts: `{type: text, text}`, `{type: image}` (the next of `images`), or an image part
that brings its image (`image`, `path`, `url`, `base64`, `image_url`). IMAGE is a path, a `data:` URI, base64, or
`{bytes, path}`, as Hugging Face's datasets keep it. Messages without any `<image>` get all images in front of the first
question, as ms-swift and TRL do it; in `conversations` marks and images must match.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from safevlm.data.dialogues import ASSISTANT, SYSTEM, USER, Said

IMAGE = "<image>"
ROLES = {
    "human": USER,
    "user": USER,
    "USER": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "ASSISTANT": ASSISTANT,
    "system": SYSTEM,
}
LAYOUTS = ("conversations", "messages")
SPEAKER, WORDS = ("from", "role"), ("value", "content")
SOURCES = ("image", "path", "url", "base64", "image_url")
"""Keys of an image part that bring the image."""
OTHER_MEDIA = ("videos", "audios", "video", "audio")
BESIDE_TURNS = frozenset({"messages", "prompt", "completion", "system", *OTHER_MEDIA})
"""Keys that mean something beside LLaVA's `conversations`."""
LEARNED = ("loss", "weight", "train", "loss_scale")
"""Keys by which ms-swift, OpenAI and others say that an answer is context, and not learned."""
LONGEST_PATH = 1024
"""Characters; a longer text is taken for base64."""
ADDRESSES = ("http://", "https://", "ftp://")

ImageRef = str | bytes
"""A path, or the bytes of an image file."""


class ConversationError(ValueError):
    """A conversation that cannot be read; the message lacks the record's place."""


class RecordTurn(NamedTuple):
    role: str
    text: str
    """With its `<image>` marks."""

    def said(self) -> Said:
        """Words and number of images; a question's words lose their marks."""
        if self.role != USER:
            return Said(self.role, self.text)
        return Said(USER, self.text.replace(IMAGE, "").strip(), self.text.count(IMAGE))


@dataclass(frozen=True)
class RecordContent:
    turns: tuple[RecordTurn, ...]
    images: tuple[ImageRef, ...]


def is_record(raw: Any) -> bool:
    """Whether a row has one of the layouts, right or wrong inside."""
    if type(raw) is not dict and not isinstance(raw, Mapping):
        return False
    return isinstance(raw.get("conversations"), list) or isinstance(raw.get("messages"), list) or _is_trl(raw)


def read_conversation(raw: Any) -> RecordContent:
    """One row → its turns and images. ConversationError says what is wrong with which turn, part or image."""
    if not is_record(raw):
        raise ConversationError("a record needs a list `conversations` or `messages`")
    told = [name for name in LAYOUTS if raw.get(name)]
    if not told and not _is_trl(raw):
        raise ConversationError("a record needs turns in its `conversations` or `messages`")
    if len(told) > 1:
        raise ConversationError("both `conversations` and `messages`; keep the one to learn from")
    media = [name for name in OTHER_MEDIA if raw.get(name)]
    if media:
        raise ConversationError(f"`{media[0]}` cannot be read; take this record out")
    brought: list[ImageRef] = []
    turns = [_turn(turn, brought) for turn in (raw[told[0]] if told else [*raw["prompt"], *raw["completion"]])]
    images = image_refs(raw)
    if brought and images:
        raise ConversationError("images in the content's parts and in `images`; keep them in one of the two")
    if raw.get("system"):
        turns = [RecordTurn(SYSTEM, _text(raw["system"], "system")), *turns]
    if "conversations" not in told and images and not any(IMAGE in turn.text for turn in turns):
        turns = _in_front(turns, len(images))
    turns = [turn for turn in turns if turn.role != SYSTEM or turn.text.strip()]  # an empty one says nothing
    return RecordContent(tuple(turns), (*images, *brought))


def _is_trl(raw: Mapping[str, Any]) -> bool:
    return isinstance(raw.get("prompt"), list) and isinstance(raw.get("completion"), list)


def _in_front(turns: Sequence[RecordTurn], images: int) -> list[RecordTurn]:
    first = next((index for index, turn in enumerate(turns) if turn.role == USER), None)
    return [
        RecordTurn(turn.role, f"{IMAGE}\n" * images + turn.text) if index == first else turn
        for index, turn in enumerate(turns)
    ]


# turns


def _turn(turn: Any, brought: list[ImageRef]) -> RecordTurn:
    return _plain_turn(turn) or _any_turn(turn, brought)


def _plain_turn(turn: Any) -> RecordTurn | None:
    """LLaVA's own: two texts and no more. None: another one, or a wrong one."""
    if type(turn) is not dict or len(turn) != 2:
        return None
    speaker, text = turn.get("from"), turn.get("value")
    role = ROLES.get(speaker) if type(speaker) is str else None
    if role is None or type(text) is not str or (role != USER and IMAGE in text):
        return None
    return RecordTurn(role, text)


def _any_turn(turn: Any, brought: list[ImageRef]) -> RecordTurn:
    if not isinstance(turn, Mapping):
        raise ConversationError(f"a turn needs `from` and a text `value`, or `role` and `content`, not {turn!r}")
    speaker = _only(turn, SPEAKER)
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ConversationError(f"unknown speaker {speaker!r}; one of {sorted(ROLES)}")
    unlearned = next((key for key in LEARNED if turn.get(key) is not None and not turn[key]), None)
    if unlearned and role == ASSISTANT:
        told = f"an answer with `{unlearned}: {turn[unlearned]}`, which cannot be kept: every answer here is learned"
        raise ConversationError(f"{told}; take it out, or the turns up to it")
    text = _content(_only(turn, WORDS), brought)
    if IMAGE in text and role != USER:
        raise ConversationError(f"{IMAGE} in a turn of {speaker!r}; images belong to the user's turns")
    return RecordTurn(role, text)


def _only(turn: Mapping[str, Any], names: Sequence[str]) -> Any:
    given = [name for name in names if turn.get(name) is not None]
    if len(given) > 1:
        raise ConversationError(f"a turn has `{given[0]}` and `{given[1]}`; keep one")
    return turn[given[0]] if given else None


def _content(content: Any, brought: list[ImageRef]) -> str:
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ConversationError(f"a turn needs a text `value` (or a `content` of parts), not {content!r}")
    return content if isinstance(content, str) else " ".join(_part(part, brought) for part in content)


def _part(part: Any, brought: list[ImageRef]) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return _text(part.get("text"), "text")
    if kind not in ("image", "image_url"):
        raise ConversationError(f"unknown part {_short(part)}; one of type text, image, image_url")
    source = _only(part, SOURCES)
    if source is not None:
        brought.append(image_ref(source))
    return IMAGE


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ConversationError(f"`{name}` must be a text, not {_short(value)}")
    return value


# images


def image_refs(raw: Mapping[str, Any]) -> list[ImageRef]:
    """What `image` or `images` of a row names. ConversationError: something else than images."""
    given = [name for name in ("image", "images") if raw.get(name) is not None and raw[name] != []]
    if len(given) > 1:
        raise ConversationError("both `image` and `images`; keep one")
    if not given:
        return []
    value = raw[given[0]]
    refs = value if isinstance(value, list) else [value]
    try:
        return [image_ref(ref) for ref in refs]
    except ConversationError as error:
        raise ConversationError(
            f"`{given[0]}` must be a path or a list of paths, {{bytes, path}} or base64: {error}"
        ) from error


def image_ref(value: Any) -> ImageRef:
    """One image as a record names it → its path, or its bytes."""
    if type(value) is str and 0 < len(value) <= LONGEST_PATH and ":" not in value:
        return value
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if isinstance(data, str):  # JSON has no bytes
            return _decoded(data)
        return image_ref(data if data is not None else _only(value, ("path", "url")))
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise ConversationError(f"not {_short(value)}")
    if value.lower().startswith(ADDRESSES):
        raise ConversationError(f"{value}: images are not fetched from addresses; download it, and give its path")
    if value.startswith("data:"):
        return _decoded(value.partition(",")[2])
    return _decoded(value) if len(value) > LONGEST_PATH else value.removeprefix("file://")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConversationError(f"{_short(text)}: neither a path nor base64 ({error})") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
