"""`POST /v1/chat/completions`: the body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from safevlm.serve.wire.base import IGNORED, Mode, ModerationAsked, Side, Wire

HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
"""Fields that this model cannot serve, with the values at which they ask for nothing."""
NO_EFFECT = (*IGNORED, "reasoning_effort", "verbosity")


class ImageUrl(Wire):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Without effect: the model has one resolution."""


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Wire):
    type: Literal["text"]
    text: str


class RefusalPart(Wire):
    type: Literal["refusal"]
    refusal: str


def kind_of(part: Any) -> str:
    """The type that a part says it has."""
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return kind if isinstance(kind, str) else ""


def by_kind(*kinds: str, find: Callable[[Any], str] = kind_of) -> Discriminator:
    """Chooses the part that is tagged with its kind; the error names all of them."""
    said = f"no part that is taken here; its type is one of {', '.join(kinds)}"
    return Discriminator(find, custom_error_type="unknown_part", custom_error_message=said)


Part = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[ImagePart, Tag("image_url")] | Annotated[RefusalPart, Tag("refusal")],
    by_kind("text", "image_url", "refusal"),
]


class ChatMessage(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    refusal: str | None = None
    """Of an assistant's message: what it said in place of an answer."""
    name: str | None = None
    annotations: list[Any] = Field(default=[], max_length=0)
    """What the client echoes of an answer; this server gives none."""

    def text(self) -> str:
        """All words; parts are joined by a space, as the chat template joins them."""
        if isinstance(self.content, str):
            return self.content
        said = [
            part.refusal if isinstance(part, RefusalPart) else part.text
            for part in self.content or ()
            if not isinstance(part, ImagePart)
        ]
        return " ".join(said) if self.content is not None else self.refusal or ""

    def images(self) -> list[tuple[int, str]]:
        """Place among the parts, and URL."""
        if not isinstance(self.content, list):
            return []
        return [(place, part.image_url.url) for place, part in enumerate(self.content) if isinstance(part, ImagePart)]


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Without effect."""


class ChatBody(Wire):
    """Of what OpenAI's clients send, all that can change the answer is either honoured or an error."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    moderation: ModerationAsked | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, body: Any) -> Any:
        return served_only(body, HARMLESS, NO_EFFECT)

    def asks(self, side: Side) -> Mode | None:
        """What it wants done about one side of the conversation; None: nothing."""
        return self.moderation.mode(side) if self.moderation is not None else None


def served_only(body: Any, harmless: dict[str, tuple[Any, ...]], no_effect: tuple[str, ...]) -> Any:
    """The body without what has no effect. PydanticCustomError: a field that asks for what is not served."""
    if not isinstance(body, dict):
        return body
    kept = {}
    for key, value in body.items():
        if key in harmless and value is not None and not _is_one_of(value, harmless[key]):
            raise PydanticCustomError("not_supported", "{param}: not supported; leave it out", {"param": key})
        if key not in harmless and key not in no_effect:
            kept[key] = value
    return kept


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(value == each and (type(value) is type(each) or isinstance(value, float)) for each in allowed)
