"""An OpenAI-compatible server on this machine that says what a script tells it, well or badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from safevlm.miniature.judge_server import fenced, listening, text_of


@dataclass(frozen=True)
class Say:
    """An answer of the chat, or of the completions, whichever was asked."""

    text: str | None
    finish: str = "stop"
    refusal: str | None = None


@dataclass(frozen=True)
class Raw:
    """A response as it goes over the wire; `cut` closes the connection before all of it is sent."""

    body: bytes
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True)
class Hang:
    """No response in time."""

    seconds: float


Step = Say | Raw | Hang
Script = Callable[[str, int], Step]
"""The text of the prompt and the number of the call, from 0 → what the server does."""

RATE_LIMIT = Raw(b'{"error": {"message": "slow down"}}', 429, headers={"Retry-After": "0.05"})
FILTER = Raw(b'{"error": {"message": "filtered", "code": "content_filter"}}', 400)
HTML = Raw(b"<html>bad gateway, 10 of 10</html>", kind="text/html")
HALF_JSON = Raw(b'{"choices": [{"message": {"content": "10"')
NO_CHOICES = Raw(b'{"choices": []}')
CUT = Raw(b'{"choices": [{"message": {"content": "10"}}]}' + b" " * 100, cut=True)
BROKEN = Raw(b'{"error": {"message": "oh"}}', 500, headers={"Retry-After": "0.05"})


@dataclass
class Server:
    url: str
    bodies: list[dict[str, Any]]

    @property
    def prompts(self) -> list[str]:
        return [text_of(body) for body in self.bodies]


def images_of(body: dict[str, Any]) -> list[str]:
    """Data URIs of a request."""
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return [part["image_url"]["url"] for content in contents for part in content if part["type"] == "image_url"]


def answer_in(prompt: str) -> str:
    """What stands in the fence of the answer; the fence must be there exactly once."""
    found = fenced(prompt, "answer")
    assert found is not None, prompt
    return found


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """A server on a free port of this machine."""
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            return

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen)
                seen.append(body)
            _act(self, script(text_of(body), number), "prompt" in body)

    with listening(Handler) as url:
        yield Server(url, seen)


def _act(handler: BaseHTTPRequestHandler, step: Step, is_completion: bool) -> None:
    if isinstance(step, Hang):
        time.sleep(step.seconds)
        handler.close_connection = True
        return
    raw = step if isinstance(step, Raw) else Raw(_body(step, is_completion))
    handler.send_response(raw.status)
    handler.send_header("Content-Type", raw.kind)
    handler.send_header("Content-Length", str(len(raw.body)))
    for name, value in raw.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(raw.body[: len(raw.body) // 2] if raw.cut else raw.body)
    handler.wfile.flush()
    if raw.cut:
        handler.connection.close()


def _body(step: Say, is_completion: bool) -> bytes:
    message = {"role": "assistant", "content": step.text, "refusal": step.refusal}
    words = {"text": step.text} if is_completion else {"message": message}
    return json.dumps(
        {
            "id": "1",
            "object": "x",
            "created": 0,
            "model": "scripted-2026-01-01",
            "system_fingerprint": "fp1",
            "choices": [{"index": 0, "finish_reason": step.finish, **words}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    ).encode()
