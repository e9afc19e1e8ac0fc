"""A client to an OpenAI-compatible server: one call, many calls, and what became of each.

Judges speak through it, and so may whoever asks a served model. Retries, backoff with jitter and `Retry-After` are the
`openai` client's own. The trap is a call that fails: its outcome is `failed` or `refused`, never a text, so that
nothing downstream can take it for an answer. The key comes from the environment and is written nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from safevlm.data.data_uris import image_uri
from safevlm.data.images import open_image
from safevlm.usage import UsageError

BASE_URL = "OPENAI_BASE_URL"
API_KEY = "OPENAI_API_KEY"
NO_KEY = "EMPTY"  # what servers without keys are sent
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
IMAGE_SIDE = 1024  # pixels; larger images are scaled down before they are sent
JPEG_QUALITY = 95
GIVE_UP_AFTER = 20  # failures in a row; the server is gone, and the rest would only wait for their retries
FATAL = (401, 403, 404)  # wrong key, wrong address, wrong model: no call will do better
FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
REASONING_MODELS = re.compile(r"(^|/)(o\d|gpt-5)")
"""These take `max_completion_tokens` and no temperature."""
REASONING_TOKENS = 2048  # their thoughts count as output

Job = TypeVar("Job")


@dataclass(frozen=True)
class Turn:
    """One message to a model."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class CallOutcome:
    """What became of a call."""

    kind: Literal["said", "refused", "failed"]
    """`refused`: the provider withheld an answer (content filter); `failed`: there was none."""
    text: str
    """What the model said, or why it did not."""
    is_cut: bool = False
    """Whether the text ends because it reached its length."""
    tokens_in: int = 0
    tokens_out: int = 0
    served_as: str = ""
    """The name and build that the server itself gives the model; a name such as `gpt-4o` moves, this says where to."""


@dataclass(frozen=True)
class Endpoint:
    """A server, a model on it, and how patiently it is asked."""

    model: str
    base_url: str = ""
    """Empty: the environment's OPENAI_BASE_URL."""
    timeout: float = 60.0
    """Seconds for one try."""
    max_retries: int = 5
    """After timeouts, cut connections, 408, 409, 429 and 5xx."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of every call, such as temperature and max_tokens."""


class EndpointError(ValueError):
    """A server that cannot be used at all; the message names the flag or variable to mend."""


def greedy(model: str, max_tokens: int) -> dict[str, Any]:
    """Decoding parameters of a repeatable call, in the words that the model takes."""
    if REASONING_MODELS.search(model):
        return {"max_completion_tokens": max_tokens + REASONING_TOKENS}
    return {"temperature": 0, "max_tokens": max_tokens, "seed": 0}


def connect(endpoint: Endpoint) -> Any:
    """The `openai` client. EndpointError: no address, or no key for a server that is not this machine."""
    try:
        from openai import OpenAI, OpenAIError
    except ImportError as error:
        raise ImportError("a judge or model behind a server needs: pip install -e '.[eval]'") from error
    base_url = address(endpoint)
    host = urlsplit(base_url).hostname or ""
    key = os.environ.get(API_KEY) or (NO_KEY if host in LOCAL_HOSTS else "")
    if not host:
        raise EndpointError(f"--base-url: {base_url!r} is no address; give one such as http://127.0.0.1:8000/v1")
    if not key:
        raise EndpointError(f"{API_KEY} is not set; {host} needs a key (for a server without keys, set it to {NO_KEY})")
    try:
        return OpenAI(base_url=base_url, api_key=key, timeout=endpoint.timeout, max_retries=endpoint.max_retries)
    except OpenAIError as error:
        raise EndpointError(f"--base-url {base_url}: {error}") from error


def address(endpoint: Endpoint) -> str:
    """Where the server is, without a user or password that a URL may hold. EndpointError when nobody said."""
    base_url = endpoint.base_url or os.environ.get(BASE_URL, "")
    if not base_url:
        raise EndpointError(f"no address of the server: give --base-url, or set {BASE_URL}")
    if urlsplit(base_url).username or urlsplit(base_url).password:
        raise EndpointError(f"--base-url holds a user or password; put the key into {API_KEY} instead")
    return base_url


def say(client: Any, endpoint: Endpoint, turns: Sequence[Turn]) -> CallOutcome:
    """One call to the chat of a server. EndpointError when no other call could do better."""
    messages = [_message(turn) for turn in turns]  # before the call: a broken image is the user's to mend
    return _outcome(
        lambda: client.chat.completions.create(model=endpoint.model, messages=messages, **endpoint.decoding),
        endpoint,
        _chat_outcome,
    )


def complete(client: Any, endpoint: Endpoint, prompt: str) -> CallOutcome:
    """One raw completion, for judges that were trained without a chat format."""
    return _outcome(
        lambda: client.completions.create(model=endpoint.model, prompt=prompt, **endpoint.decoding),
        endpoint,
        _completion_outcome,
    )


def call_all(
    jobs: Sequence[Job],
    call: Callable[[Job], CallOutcome],
    concurrency: int = 8,
    give_up_after: int = GIVE_UP_AFTER,
) -> Iterator[tuple[Job, CallOutcome]]:
    """Outcomes as they come, in any order; jobs left over when the server is given up never come.

    At most `concurrency` calls are under way, so that a stop (Ctrl-C, a fatal answer) wastes no more than these.
    """
    if concurrency < 1:
        raise UsageError(f"--concurrency: {concurrency} is too small; give 1 or more")
    waiting = iter(jobs)
    failures = 0
    pool = ThreadPoolExecutor(concurrency)
    try:
        running: dict[Future[CallOutcome], Job] = {}
        while True:
            _fill(running, waiting, pool, call, 0 if failures >= give_up_after else concurrency)
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job, outcome = running.pop(future), future.result()
                failures = failures + 1 if outcome.kind == "failed" else 0
                yield job, outcome
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _fill(
    running: dict[Future[CallOutcome], Job],
    waiting: Iterator[Job],
    pool: ThreadPoolExecutor,
    call: Callable[[Job], CallOutcome],
    limit: int,
) -> None:
    while len(running) < limit:
        job = next(waiting, None)
        if job is None:
            return
        running[pool.submit(call, job)] = job


def _message(turn: Turn) -> dict[str, Any]:
    if not turn.images:
        return {"role": turn.role, "content": turn.text}
    uris = [image_uri(open_image(path), IMAGE_SIDE, JPEG_QUALITY) for path in turn.images]
    images = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}


def _outcome(call: Callable[[], Any], endpoint: Endpoint, read: Callable[[Any], CallOutcome]) -> CallOutcome:
    from openai import APIStatusError, OpenAIError

    try:
        return read(call())
    except APIStatusError as error:
        return _status_outcome(error, endpoint)
    except (OpenAIError, ValueError, AttributeError, LookupError, TypeError) as error:  # no JSON, or not this kind
        return CallOutcome("failed", f"{type(error).__name__}: {_line(error)}")


def _status_outcome(error: Any, endpoint: Endpoint) -> CallOutcome:
    code = error.status_code
    if code in FATAL:  # the server's own text is left out: some repeat a part of the key
        raise EndpointError(
            f"the server refuses every call ({code}): check --base-url, {API_KEY} and the model {endpoint.model!r}"
        ) from error
    if error.code in FILTERED or any(mark in str(error.body) for mark in FILTERED):
        return CallOutcome("refused", f"{code}: content filter")
    return CallOutcome("failed", f"{code}: {_line(error)}")


def _chat_outcome(response: Any) -> CallOutcome:
    choice = response.choices[0]
    text, notes = choice.message.content, _notes(response)
    if choice.message.refusal or choice.finish_reason == "content_filter" or text is None:
        return CallOutcome("refused", str(choice.message.refusal or choice.finish_reason or "no content"), **notes)
    return CallOutcome("said", _text(text), is_cut=choice.finish_reason == "length", **notes)


def _completion_outcome(response: Any) -> CallOutcome:
    choice, notes = response.choices[0], _notes(response)
    if choice.finish_reason == "content_filter" or choice.text is None:
        return CallOutcome("refused", str(choice.finish_reason or "no content"), **notes)
    return CallOutcome("said", _text(choice.text), is_cut=choice.finish_reason == "length", **notes)


def _text(content: object) -> str:
    if not isinstance(content, str):
        raise TypeError(f"content is no text but {type(content).__name__}")
    return content


def _notes(response: Any) -> dict[str, Any]:
    usage = response.usage
    tokens = {"tokens_in": usage.prompt_tokens or 0, "tokens_out": usage.completion_tokens or 0} if usage else {}
    served_as = " ".join(filter(None, [response.model, response.system_fingerprint]))
    return {**tokens, "served_as": served_as}


def _line(error: BaseException) -> str:
    """One short line of an error, without the key."""
    text = " ".join(str(error).split())[:200]
    key = os.environ.get(API_KEY)
    return text.replace(key, "***") if key else text
