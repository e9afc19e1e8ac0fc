"""An action of NeMo Guardrails that asks a running `safevlm serve` before NeMo asks its model.

NeMo gives an input rail the last question; the action looks up the whole conversation as well, and sends it to the path
for gateways. Whatever goes wrong is a block, and never an exception: NeMo would write the conversation to its log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from safevlm.files import checked
from safevlm.serve.wire.gateway import PATH

log = logging.getLogger(__name__)

ACTION = "safevlm_check_input"
SETTINGS = "safevlm"
"""Key of `custom_data` in NeMo's config.yml."""
KEY = "SAFEVLM_API_KEY"
Ask = Callable[[Mapping[str, Any]], Awaitable[Any]]
NEMOS_OWN = ("context", "event")
"""Roles of messages that no model is shown; what they bring for one stands in the events."""


@dataclass(frozen=True)
class GuardServer:
    """Where the guard is asked; what `custom_data.safevlm` holds."""

    url: str
    """Of `safevlm serve`: http://127.0.0.1:8000"""
    timeout: float = 60.0
    """Seconds in which it must answer."""

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"url: {error}; write http://127.0.0.1:8000") from error
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment or url.userinfo:
            raise ValueError("url: not the address of a server; write http://127.0.0.1:8000")
        if self.timeout <= 0:
            raise ValueError("timeout: must be above 0 seconds")


@dataclass(frozen=True)
class RailVerdict:
    """What the rail is to do with a request."""

    kind: Literal["allow", "block", "transform", "failure"]
    """`failure`: a block because the guard could not be asked."""
    reason: str = ""
    message: str | list[Any] = ""
    """`transform`: the last question as the model is to be asked it, images included."""


class OddAnswer(ValueError):
    """The guard answered, and not in a way that can be used. The message repeats nothing of a conversation."""


def register(rails: Any) -> None:
    """Gives `rails`, an `LLMRails` of NeMo Guardrails 0.24 or later, the action `safevlm_check_input`.

    The server's address stands in its configuration under `custom_data.safevlm`, its key in SAFEVLM_API_KEY. The action
    returns a `RailOutcome`: allow, block, or a transform whose `metadata["user_message"]` is the question with the
    guard's hint, images included. ImportError: no such version. ValueError: no such address.
    """
    try:
        from nemoguardrails.actions import action
        from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget
        from nemoguardrails.context import raw_llm_request
    except ImportError as error:
        raise ImportError("this needs NeMo Guardrails 0.24 or later: pip install 'safevlm[nemo]'") from error
    server = checked(GuardServer, rails.config.custom_data.get(SETTINGS), f"config.yml: custom_data.{SETTINGS}")
    ask = GuardClient(server, os.environ.get(KEY, "")).ask

    async def check_input(context: dict[str, Any], events: list[Any]) -> Any:
        verdict = await verdict_on(ask, raw_llm_request.get(), events, context.get("user_message"))
        if verdict.kind == "transform":
            rewrites = [(TransformTarget.USER_MESSAGE, "\n".join(words_of(verdict.message)))]
            return RailOutcome.transform(rewrites, metadata={"user_message": verdict.message})
        return getattr(RailOutcome, verdict.kind)(reason=verdict.reason or None)

    # A system action runs in this process, also where the others run in an actions server.
    rails.register_action(action(is_system_action=True, name=ACTION)(check_input), ACTION)


class GuardClient:
    """Posts bodies to a guard's path for gateways."""

    def __init__(self, server: GuardServer, key: str = "") -> None:
        self._url = server.url.rstrip("/") + PATH
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._timeout = server.timeout
        self._trusted = ssl.create_default_context()

    async def ask(self, body: Mapping[str, Any]) -> Any:
        """What the guard answers. httpx2.HTTPError, TimeoutError, ValueError (OddAnswer): nothing of use.

        A connection for each, since NeMo's synchronous calls may each have an event loop of their own.
        """
        client = httpx2.AsyncClient(
            headers=self._headers, timeout=self._timeout, verify=self._trusted, follow_redirects=False, trust_env=False
        )
        async with asyncio.timeout(self._timeout), client:
            answer = await client.post(self._url, content=json.dumps(body, allow_nan=False).encode())
        if answer.status_code != httpx2.codes.OK:
            raise OddAnswer(f"the guard answered with status {answer.status_code}")
        return answer.json()


async def verdict_on(ask: Ask, raw: Any, events: Sequence[Any], question: Any) -> RailVerdict:
    """What `await ask(body)`, the guard, says of a conversation. Never raises.

    `raw`: the client's messages, where NeMo has them. `events`: NeMo's own history of the conversation, which may be
    another one's with the same words. `question`: the last one, as rails in front of this one left it.
    """
    try:
        return verdict_of(await ask(body_of(raw, events, question)), question)
    except Exception as error:  # noqa: BLE001 - whatever breaks must not let the request through, nor into NeMo's log
        told = str(error) if isinstance(error, OddAnswer) else f"the guard was not asked ({type(error).__name__})"
        log.error("%s, so nothing is let through", told)
        return RailVerdict("failure", "the guard could not be asked, so nothing is let through")


def body_of(raw: Any, events: Sequence[Any], question: Any) -> dict[str, Any]:
    """What the guard is asked: all that the model may be shown, the question last."""
    told = [message for event in events if isinstance(event, Mapping) for message in _said_in(event)]
    given = [message for message in raw if message.get("role") not in NEMOS_OWN] if isinstance(raw, list) else told
    lasts = [index for index, message in enumerate(given) if message.get("role") == "user"] if given is not told else []
    last = lasts[-1] if lasts else len(given)
    asked = {"role": "user", "content": _with_room(question)}
    before, after = given[:last], given[last + 1 :]
    known = [part for message in [*before, asked, *after] for part in _media_in(message)]
    rest = [part for message in [*given[last : last + 1], *told] for part in _media_in(message)]
    unseen = [part for index, part in enumerate(rest) if part not in known and part not in rest[:index]]
    beside = [{"role": "user", "content": unseen}] if unseen else []
    messages = [*before, *beside, asked, *after]
    return {"input_type": "request", "texts": words_of(asked["content"]), "structured_messages": messages}


def verdict_of(answer: Any, question: Any) -> RailVerdict:
    """The guard's answer as a verdict. OddAnswer: it is none that this version knows."""
    action = answer.get("action") if isinstance(answer, Mapping) else None
    if action == "NONE":
        return RailVerdict("allow")
    if action == "BLOCKED":
        reason = answer.get("blocked_reason")
        return RailVerdict("block", reason if isinstance(reason, str) else "")
    if action == "GUARDRAIL_INTERVENED":
        return RailVerdict("transform", message=_reworded(_with_room(question), answer.get("texts")))
    raise OddAnswer("the guard answered in another form")


def words_of(content: Any) -> list[str]:
    """Texts of a message's content."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if _is_text(part)]


def _reworded(content: str | list[Any], texts: Any) -> str | list[Any]:
    """The content with its texts replaced, in their order."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise OddAnswer("the guard answered without texts")
    if len(texts) != len(words_of(content)):
        raise OddAnswer("the guard answered with another number of texts")
    if isinstance(content, str):
        return str(texts[0])
    left = iter(texts)
    return [{**part, "text": next(left)} if _is_text(part) else part for part in content]


def _with_room(content: Any) -> Any:
    """An image alone gets an empty text, in which the guard can place its hint."""
    if isinstance(content, list) and not any(_is_text(part) for part in content):
        return [*content, {"type": "text", "text": ""}]
    return content


def _said_in(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a model is shown of an event."""
    if event.get("type") == "UserMessage":
        return [{"role": "user", "content": event.get("text")}]
    if event.get("type") == "StartUtteranceBotAction":
        return [{"role": "assistant", "content": event.get("script")}]
    if event.get("type") == "SystemMessage":
        return [{"role": "system", "content": event.get("content")}]
    return []


def _media_in(message: Mapping[str, Any]) -> list[Any]:
    """Whatever is no text."""
    content = message.get("content")
    return [part for part in content if not _is_text(part)] if isinstance(content, list) else []


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
