"""`POST /v1/chat/completions` of a guard in front of another server: what may go on to it.

It is an allow-list: a field that could carry an image in a form that the guard does not read has no place here, and
neither has one that changes how the upstream reads images or the prompt.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from safevlm.serve.wire.base import IGNORED, Wire
from safevlm.serve.wire.chat import ChatBody, ChatMessage, served_only

HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
"""Fields that do not go on, with the values at which they ask for nothing."""
NO_EFFECT = (*(name for name in IGNORED if name != "parallel_tool_calls"), "verbosity")


class FunctionCalled(Wire):
    name: str
    arguments: str


class ToolCall(Wire):
    id: str
    type: Literal["function"]
    function: FunctionCalled


class FrontMessage(ChatMessage):
    role: Literal["system", "developer", "user", "assistant", "tool"]  # type: ignore[assignment]  # one role more
    tool_calls: list[ToolCall] = []
    """Of an assistant's message."""
    tool_call_id: str | None = None
    """Of a tool's message."""

    @model_validator(mode="after")
    def _tools_in_their_roles(self) -> FrontMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls in a {self.role} message; only an assistant calls tools")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id belongs to a tool's message, and each of them has one")
        return self

    def said(self) -> str:
        """All words, those of calls included."""
        calls = [f"{call.function.name}({call.function.arguments})" for call in self.tool_calls]
        return " ".join([*filter(None, [self.text()]), *calls])


class Function(Wire):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema: words for the model."""
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class FunctionName(Wire):
    name: str


class ToolChoice(Wire):
    type: Literal["function"]
    function: FunctionName


class AnswerSchema(Wire):
    name: str
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: AnswerSchema | None = None


Number = Annotated[float, Field(allow_inf_nan=False)]


class FrontBody(ChatBody):
    """What the upstream may be asked, OpenAI's fields and vLLM's. `model` and `messages` are written anew for it."""

    messages: list[FrontMessage] = Field(min_length=1)  # type: ignore[assignment]  # messages with one role more
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    repetition_penalty: Number | None = None
    top_k: int | None = None
    min_p: Number | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    logit_bias: dict[str, Number] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, body: Any) -> Any:
        return served_only(body, HARMLESS, NO_EFFECT)


NOT_SENT: dict[str, Any] = {
    "model": True,
    "messages": True,
    "moderation": True,
    "stream_options": {"include_obfuscation"},
}
"""Fields that are the guard's own, or are written anew."""
