"""What all bodies share: unknown fields are errors, fields that are null count as absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator


class Wire(BaseModel):
    """A part of a body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: held for key, held in value.items() if held is not None}


Mode = Literal["score", "block"]
Side = Literal["input", "output"]


class SideMode(Wire):
    """What is done about one side of a conversation."""

    mode: Mode


class ModerationPolicy(Wire):
    """Of the question and of the answer. A request can ask for more than the server's policy does, never for less."""

    input: SideMode | None = None
    output: SideMode | None = None


class ModerationAsked(Wire):
    """OpenAI's inline moderation: tell what was seen, and block what is flagged."""

    model: str
    policy: ModerationPolicy | None = None

    def mode(self, side: Side) -> Mode | None:
        """Of one side; None: not asked for. A bare `moderation` scores what comes in."""
        chosen = getattr(self.policy, side) if self.policy is not None else None
        if chosen is not None:
            mode: Mode = chosen.mode
            return mode
        return "score" if self.policy is None and side == "input" else None


IGNORED = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
"""Accepted, and without an effect on the answer; never logged."""
