"""`transformers serve` as it comes, with a stock model, behind the guard."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from safevlm.engine import Engine
from safevlm.miniature import drawing
from safevlm.miniature.world import sample_scene
from safevlm.serve.access import Keys
from safevlm.serve.app import create_app
from safevlm.serve.front import Front
from safevlm.serve.upstream import Upstream
from tests.serve.serving import Served, asked, listening, uri
from tests.serve.test_output_guard import built

pytestmark = pytest.mark.slow
MODEL = Path(__file__).parents[2] / "checkpoints" / "miniature"
STARTS = 180.0
"""Seconds in which the server must answer."""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(MODEL), "--device", "cpu"]
    with log.open("w") as output:
        options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
        server = subprocess.Popen([*command, *options], stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, server, log)
            yield url
        finally:
            server.terminate()
            server.wait(30)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if httpx2.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.3)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def front(there: str) -> Iterator[Served]:
    engine = Engine.load(MODEL, defense="safe-clip", device="cpu", lm=False)
    guard = Front(engine, str(MODEL), upstream=Upstream(there), upstream_model=str(MODEL))
    with listening(create_app(guard, Keys(()))) as address:
        yield Served(guard, address)


def test_it_answers_behind_the_guard_what_it_answers_alone(front: Served, there: str) -> None:
    benign, risky = _seen(front, risky=False), _seen(front, risky=True)
    direct = Served(front.model, there)
    for messages in (
        [asked("What is in the picture?", benign)],
        [asked("What is it?", benign), {"role": "assistant", "content": "A cup."}, asked("And this?", benign)],
        [asked("What is it?")],
    ):
        told = [_answers(served, messages) for served in (front, direct)]
        assert told[0] == told[1] and told[0][0]
    hinted = front.client().chat.completions.create(
        model=str(MODEL), messages=[asked("", risky)], max_tokens=8, extra_body={"moderation": {"model": "any"}}
    )
    assert hinted.moderation.input.results[0].flagged
    block = {"model": "any", "policy": {"input": {"mode": "block"}}}
    for images in ([risky], [benign, risky], [risky, benign]):
        stopped = front.client().chat.completions.create(
            model=str(MODEL), messages=[asked("", *images)], extra_body={"moderation": block}
        )
        assert (stopped.choices[0].finish_reason, stopped.choices[0].message.content) == ("content_filter", None)


def _answers(served: Served, messages: list[dict[str, object]]) -> tuple[str | None, str]:
    ask = served.client().chat.completions.create
    plain = ask(model=str(MODEL), messages=messages, max_tokens=12, temperature=0)
    pieces = ask(model=str(MODEL), messages=messages, max_tokens=12, temperature=0, stream=True)
    return plain.choices[0].message.content, "".join(piece.choices[0].delta.content or "" for piece in pieces)


def test_responses_behind_the_guard_say_what_its_own_responses_say(front: Served, there: str) -> None:
    """It is asked for a chat in its place; `stream` is always told, since it streams where nobody says."""
    benign = _seen(front, risky=False)
    direct = Served(front.model, there)
    for items in (
        [{"role": "user", "content": "What is it?"}],
        [_user("What is in the picture?", benign)],
        [_user("", benign)],
        [_user("What is it?", benign), {"role": "assistant", "content": "A cup."}, _user("And this?", benign, benign)],
    ):
        (plain, streamed), own = _responses(front, input=items), _responses(direct, input=items)
        assert plain.output_text == streamed.output_text and plain.output_text
        assert {plain.output_text} == {each.output_text for each in own}
        for ours, its in zip((plain, streamed), own, strict=True):
            assert (ours.usage.input_tokens, ours.usage.output_tokens) == (
                its.usage.input_tokens,
                its.usage.output_tokens,
            )
            assert (ours.status, ours.model, ours.error) == ("completed", str(MODEL), None)
    for short in _responses(front, input="What is it?", max_output_tokens=2):
        assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_responses_about_a_risky_image_are_hinted_or_blocked(front: Served) -> None:
    benign, risky = _seen(front, risky=False), _seen(front, risky=True)
    scored = {"moderation": {"model": "any"}}
    block = {"moderation": {"model": "any", "policy": {"input": {"mode": "block"}}}}
    for images in ([risky], [benign, risky], [risky, benign]):
        for hinted in _responses(front, input=[_user("What is it?", *images)], extra_body=scored):
            assert hinted.output_text and hinted.moderation.input.flagged
        earlier = [_user("What is it?", *images), {"role": "assistant", "content": "A cup."}, _user("And now?")]
        for items in ([_user("What is it?", *images)], earlier):
            for stopped in _responses(front, input=items, extra_body=block):
                assert stopped.incomplete_details.reason == "content_filter"
                assert [part.type for part in stopped.output[0].content] == ["refusal"]
                assert not stopped.output_text
    for passed in _responses(front, input=[_user("What is it?", benign)], extra_body=block):
        assert passed.status == "completed" and passed.output_text and not passed.moderation.input.flagged


@pytest.mark.parametrize(("otherwise", "finish"), [("harmless", "length"), ("harmful", "content_filter")])
def test_it_judges_its_own_answers(front: Served, tmp_path: Path, otherwise: str, finish: str) -> None:
    """The miniature says neither yes nor no, so `otherwise` decides; that it was asked is what the judgement says."""
    wording = tmp_path / "wording.yaml"
    wording.write_text(f"otherwise: {otherwise}\n")
    front.model.output_guard = built(front, "--output-guard", f"self-check={wording}", "--output-timeout", "60")
    output = {"moderation": {"model": "any", "policy": {"output": {"mode": "block"}}}}
    messages = [asked("What is it?", _seen(front, risky=False))]
    try:
        told = front.client().chat.completions.create(
            model=str(MODEL), messages=messages, max_tokens=2, extra_body=output
        )
    finally:
        front.model.output_guard = None
    assert told.choices[0].finish_reason == finish
    assert told.moderation.output.results[0].flagged == (otherwise == "harmful")


def _user(text: str, *images: Any) -> dict[str, Any]:
    shown = [{"type": "input_image", "image_url": uri(image), "detail": "auto"} for image in images]
    return {"role": "user", "content": [*shown, *([{"type": "input_text", "text": text}] if text else [])]}


def _responses(served: Served, **asked: Any) -> tuple[Any, Any]:
    """Whole, and of the last event of a stream, whose words are those of the deltas."""
    ask = served.client().responses.create
    given: dict[str, Any] = {"model": str(MODEL), "max_output_tokens": 12, "temperature": 0} | asked
    events = list(ask(**given, stream=True))
    streamed = events[-1].response
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta") == streamed.output_text
    )
    return ask(**given, stream=False), streamed


def _seen(front: Served, risky: bool) -> object:
    """The first drawn image in which the detector sees a risk, or none."""
    from safevlm.types import Request

    for seed in range(200):
        image = drawing.draw(sample_scene(random.Random(seed), "any"))
        if front.model.engine.look(Request("What is it?", (image,))).is_clean is not risky:
            return image
    raise AssertionError("no such image")
