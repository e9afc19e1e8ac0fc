"""`POST /v1/moderations`: the body."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from safevlm.serve.wire.base import Wire
from safevlm.serve.wire.chat import ChatMessage, ImagePart, Part, TextPart, by_kind, kind_of


def _kind(part: Any) -> str:
    return "string" if isinstance(part, str) else kind_of(part)


ModerationPart = Annotated[
    Annotated[str, Tag("string")] | Annotated[TextPart, Tag("text")] | Annotated[ImagePart, Tag("image_url")],
    by_kind("text", "image_url", find=_kind),
]


class ModerationsBody(Wire):
    """Strings are looked at one by one; parts are one thing, words and images together."""

    input: str | Annotated[list[ModerationPart], Field(min_length=1)]
    model: str | None = None
    """Any name is taken: what looks is the guard of this server, whatever clients call it."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> ModerationsBody:
        strings = [isinstance(part, str) for part in self.input]
        if any(strings) and not all(strings):
            raise PydanticCustomError("mixed", "give strings, or parts, and not both in one list", {"param": "input"})
        return self

    def items(self) -> list[ChatMessage]:
        """What gets a result each, as a user's message."""
        if isinstance(self.input, str):
            return [ChatMessage(role="user", content=self.input)]
        strings = [part for part in self.input if isinstance(part, str)]
        if strings:
            return [ChatMessage(role="user", content=text) for text in strings]
        parts: list[Part] = [part for part in self.input if not isinstance(part, str)]
        return [ChatMessage(role="user", content=parts)]
