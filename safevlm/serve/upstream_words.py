"""What an upstream says, as words: read from its events, or from its whole answer, for whoever judges it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safevlm.defenses import prompts
from safevlm.serve.server_events import CHUNK, ServerEvent, unknown_shape
from safevlm.types import Ended, Reply

FINISHES: dict[str, Ended] = {"": "", "stop": "stop", "length": "length"}
"""Why an answer that holds words alone is over, by its finish reason."""
FILTERED = "content_filter"
REASONING = ("reasoning_content", "reasoning")
"""Names of the field in which servers tell what a model thought; one of them, where both are there."""
UPSTREAM = "upstream"
"""Who refused, where the upstream did."""


@dataclass
class UpstreamWords:
    """Grows with every event."""

    text: str = ""
    reasoning: str = ""
    calls: str = ""
    """Of tools: their names and arguments."""
    refusal: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    is_unreadable: bool = False
    """Whether some of it could not be read, and so was not judged."""

    def hear(self, event: ServerEvent) -> str:
        """The words of the answer that it adds. ApiError 502: words that cannot be read, or several answers."""
        told = event.told
        usage = told.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.answer_tokens = _count(usage.get("completion_tokens"))
        choices = told.get("choices") or ()
        if not choices:
            return ""
        choice = choices[0]
        if len(choices) != 1 or not isinstance(choice, dict) or choice.get("index", 0) != 0:
            raise unknown_shape("several answers")
        spoken = choice.get("delta" if told.get("object") == CHUNK else "message") or {}
        if not isinstance(spoken, dict):
            raise unknown_shape("what is no message")
        added = _words(spoken.get("content"))
        self.text += added
        self.refusal += _words(spoken.get("refusal"))
        self.reasoning += next((_words(spoken[key]) for key in REASONING if spoken.get(key)), "")
        self.calls += "".join(f"\n{_called(spoken[key])}" for key in ("tool_calls", "function_call") if spoken.get(key))
        self.finish = _words(choice.get("finish_reason")) or self.finish
        return added

    def all_words(self) -> str:
        """Those of the answer, and what stands beside them."""
        return "\n".join(filter(None, (self.text, self.refusal, self.reasoning, self.calls)))

    def reply(self, decided: Reply) -> Reply:
        """The answer, which holds words alone, to a request about which this was decided.

        A refusal of the upstream's own is one in our words: those that it chose are not an answer that was judged.

        ApiError 502: it ends in a way that is not known, or calls a tool.
        """
        if self.calls:
            raise unknown_shape("a call of a tool, for which nobody asked")
        is_refused = self.finish == FILTERED or bool(self.refusal)
        if not is_refused and self.finish not in FINISHES:
            raise unknown_shape("an answer that ends in an unknown way")
        return Reply(
            prompts.UPSTREAM_REFUSED if is_refused else self.text,
            decided.request,
            decided.verdict,
            refused_by=UPSTREAM if is_refused else "",
            trace=decided.trace,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            ended="" if is_refused else FINISHES[self.finish],
        )


def _words(held: Any) -> str:
    """ApiError 502: neither whole characters nor nothing."""
    if held is None:
        return ""
    try:
        if isinstance(held, str) and held.encode():
            return held
    except UnicodeEncodeError as error:  # half a character, which nobody can send on
        raise unknown_shape("half a character") from error
    if held != "":
        raise unknown_shape("words that are none")
    return ""


def _called(held: Any) -> str:
    """Words of calls, which have no form that all servers share."""
    if isinstance(held, Mapping):
        return " ".join(filter(None, (_called(held[key]) for key in ("function", "name", "arguments") if key in held)))
    if isinstance(held, list):
        return " ".join(map(_called, held))
    return _words(held)


def _count(held: Any) -> int:
    return held if isinstance(held, int) and not isinstance(held, bool) and held >= 0 else 0
