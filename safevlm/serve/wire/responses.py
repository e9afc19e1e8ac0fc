"""`POST /v1/responses`: the body, and the same as a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from safevlm.serve.wire.base import IGNORED, ModerationAsked, Wire
from safevlm.serve.wire.chat import (
    ChatBody,
    ChatMessage,
    ImagePart,
    ImageUrl,
    RefusalPart,
    TextPart,
    by_kind,
    served_only,
)

HARMLESS: dict[str, tuple[Any, ...]] = {
    "access_programs": ({},),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "include": ([],),
    "previous_response_id": (),
    "prompt": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
"""Fields that this server cannot serve, with the values at which they ask for nothing. It keeps no answer, so none can
be gone on from."""
NO_EFFECT = (*IGNORED, "max_tool_calls", "reasoning")


class InputText(Wire):
    type: Literal["input_text"]
    text: str

    def chat(self) -> TextPart:
        return TextPart(type="text", text=self.text)


class InputImage(Wire):
    """`image_url` is the address itself here."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Without effect: the model has one resolution."""

    def chat(self) -> ImagePart:
        return ImagePart(type="image_url", image_url=ImageUrl(url=self.image_url))


class OutputText(Wire):
    """Of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(default=[], max_length=0)
    logprobs: list[Any] = Field(default=[], max_length=0)
    parsed: None = None
    """What the typed client adds to an answer."""

    def chat(self) -> TextPart:
        return TextPart(type="text", text=self.text)


class OutputRefusal(RefusalPart):
    """Of an earlier answer."""

    def chat(self) -> RefusalPart:
        return self


InputPart = Annotated[
    Annotated[InputText, Tag("input_text")]
    | Annotated[InputImage, Tag("input_image")]
    | Annotated[OutputText, Tag("output_text")]
    | Annotated[OutputRefusal, Tag("refusal")],
    by_kind("input_text", "input_image", "output_text", "refusal"),
]


class InputItem(Wire):
    """A message. Items of other types (calls of tools, reasoning, references) are errors."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    """Without effect, as are `id` and `status`: what the client echoes of an answer."""

    def chat(self) -> ChatMessage:
        content = self.content if isinstance(self.content, str) else [part.chat() for part in self.content]
        return ChatMessage(role=self.role, content=content)


class TextFormat(Wire):
    type: Literal["text"]


class TextSettings(Wire):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Without effect."""


class ResponseStreamOptions(Wire):
    include_obfuscation: bool | None = None
    """Without effect."""


class ResponsesBody(Wire):
    """Of what OpenAI's clients send, all that can change the answer is either honoured or an error."""

    model: str
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    text: TextSettings | None = None
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    moderation: ModerationAsked | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, body: Any) -> Any:
        return served_only(body, HARMLESS, NO_EFFECT)

    def chat(self) -> ChatBody:
        """The same, as a chat."""
        system = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        asked = [ChatMessage(role="user", content=self.input)] if isinstance(self.input, str) else self._messages()
        return ChatBody(
            model=self.model,
            messages=[*system, *asked],
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            moderation=self.moderation,
        )

    def _messages(self) -> list[ChatMessage]:
        return [item.chat() for item in self.input if isinstance(item, InputItem)]
