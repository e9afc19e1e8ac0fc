"""However an upstream answers: no character of it reaches a client before a judgement that covers it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from safevlm.serve.output_guard import OutputGuard
from tests.engine import engines
from tests.serve import upstreams
from tests.serve.serving import NAME, Served, asked, listening
from tests.serve.test_front_output import CALL, SECRET, Scripted, events, said
from tests.serve.upstreams import DONE, EVENTS, Recorder, Watching, fronting, told_chunk

pytest.importorskip("hypothesis", reason="generated answers need hypothesis (extra dev)")
from hypothesis import HealthCheck, given, settings  # noqa: E402 - after the skip
from hypothesis import strategies as st  # noqa: E402

EXAMPLES = 40
"""Fast; the slow test below takes many times as many."""
MANY = 200
ASIDE = st.sampled_from(
    [
        {},
        {"reasoning_content": SECRET},
        {"reasoning": SECRET},
        {"content": None},
        {"tool_calls": []},
        {"tool_calls": CALL},
        {"function_call": {"name": SECRET, "arguments": ""}},
        {"refusal": SECRET},
        {"audio": {"data": SECRET}},
        {"content": [{"type": "text", "text": SECRET}]},
        {"content": f"{SECRET}\ud800"},
    ]
)
MORE = ({"logprobs": {"content": [{"token": SECRET}]}}, {"text": SECRET}, {"stop_reason": SECRET})
BESIDE = st.sampled_from([{}, *MORE])
"""Fields of a choice."""
PIECE = st.text(st.sampled_from("ab ü\n😀<"), max_size=6)
PLAIN = PIECE.map(lambda text: ({"content": text}, {}))
CHUNK = st.one_of(PLAIN, PLAIN, PLAIN, st.tuples(ASIDE, BESIDE), st.tuples(PIECE.map(lambda t: {"content": t}), BESIDE))
ANSWER = st.tuples(
    st.lists(CHUNK, max_size=8),
    st.sampled_from(["stop", "stop", "length", "content_filter", "tool_calls", "odd", None]),
    st.booleans(),
)
"""Chunks, finish reason, and whether it comes as a stream."""
JUDGEMENTS = st.lists(st.sampled_from([False, False, True, None]), max_size=5)
WINDOW = st.one_of(st.none(), st.integers(1, 9))


@dataclass(frozen=True)
class Line:
    client: httpx2.Client
    served: Served
    recorder: Recorder

    def ask(self, answer: Any, script: list[bool | None], window: int | None) -> None:
        chunks, finish, stream = answer
        self.recorder.reset()
        self.recorder.answer = (200, EVENTS, [*_events(chunks, finish), DONE])
        self.recorder.whole = [_whole(chunks, finish)]
        judge = Scripted(script)
        self.served.model.output_guard = OutputGuard("scripted", judge, window=window)
        body = {"model": NAME, "messages": [asked("What is it?")], "stream": stream}
        got = self.client.post(f"{self.served.address}/v1/chat/completions", json=body)
        assert got.status_code in (200, 502) and SECRET not in got.text
        if got.status_code == 200:
            content, _, reason = said(got)
            assert not content.strip() or content in judge.passed
            is_whole = reason in ("stop", "length") and not any("error" in event for event in _told(got))
            assert not is_whole or not judge.shown or content == judge.shown[-1]
            assert is_whole or reason in ("content_filter", None)


def _told(got: httpx2.Response) -> list[dict[str, Any]]:
    return events(got) or [got.json()]


def _events(chunks: list[Any], finish: str | None) -> list[bytes]:
    said = [told_chunk({"index": 0, "delta": delta, "finish_reason": None, **more}) for delta, more in chunks]
    return [*said, told_chunk({"index": 0, "delta": {}, "finish_reason": finish})]


def _whole(chunks: list[Any], finish: str | None) -> bytes:
    message: dict[str, Any] = {"role": "assistant"}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
    for delta, more in chunks:
        before = message.get("content")
        message |= delta
        if isinstance(before, str) and isinstance(message["content"], str | None):
            message["content"] = before + (delta.get("content") or "") if "content" in delta else before
        choice |= more
    return json.dumps({**upstreams.COMPLETION, "choices": [choice]}).encode()


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    recorder = Recorder()
    with (
        listening(recorder) as there,
        fronting(engines.engine("none").behind(Watching()), there) as served,
        httpx2.Client(timeout=60.0, trust_env=False) as client,
    ):
        yield Line(client, served, recorder)


def never_unjudged(examples: int) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks, derandomize=True, database=None)


@never_unjudged(EXAMPLES)
@given(answer=ANSWER, script=JUDGEMENTS, window=WINDOW)
def test_nothing_of_an_answer_is_sent_unjudged(line: Line, answer: Any, script: Any, window: int | None) -> None:
    line.ask(answer, script, window)


@pytest.mark.slow
@never_unjudged(MANY)
@given(answer=ANSWER, script=JUDGEMENTS, window=WINDOW)
def test_nothing_of_many_answers_is_sent_unjudged(line: Line, answer: Any, script: Any, window: int | None) -> None:
    line.ask(answer, script, window)
