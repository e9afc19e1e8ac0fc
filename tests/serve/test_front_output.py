"""The guard of answers in front of another server: what that server says is read before the client does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest

from safevlm.serve.output_guard import AnswerVerdict, OutputGuard
from safevlm.serve.record import DecisionRecord
from tests.engine import engines
from tests.serve import upstreams
from tests.serve.serving import NAME, Served, asked, serving
from tests.serve.test_output_guard import built
from tests.serve.upstreams import BREAKS_OFF, DONE, EVENTS, HANGS, THERE, Recorder, Watching, fronting

BAD = "brax"
SECRET = "SECRET"
"""In fields that no judge reads."""
MESSAGES = [asked("What is it?", engines.image(1))]


@dataclass
class Scripted:
    """A judge that flags a word, or gives its scripted judgements; it keeps what it was shown, and what it passed."""

    script: list[bool | None] | None = None
    """By turns: flagged or not, None: it breaks. After the last one nothing is flagged."""
    may_judge: Event | None = None
    shown: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    async def __call__(self, request: Any, text: str) -> AnswerVerdict:
        self.shown.append(text)
        while self.may_judge is not None and not self.may_judge.is_set():
            await asyncio.sleep(0.01)
        turn = len(self.shown) - 1
        flagged: bool | None = BAD in text
        if self.script is not None:
            flagged = self.script[turn] if turn < len(self.script) else False
        if flagged is None:
            raise ConnectionError(text)
        self.passed += [] if flagged else [text]
        return AnswerVerdict("scripted", flagged, {BAD: flagged}, {BAD: float(flagged)})


@pytest.fixture(scope="module")
def running(there: str, watching: Watching) -> Iterator[Served]:
    with fronting(engines.engine("none").behind(watching), there) as served:
        yield served


@pytest.fixture
def front(running: Served, recorder: Recorder) -> Served:
    """In front of an upstream that answers well; nobody judges its answers yet."""
    running.model.output_guard = None
    running.model.keepers.clear()
    return running


@contextmanager
def judged_by(served: Served, judge: Any, **options: Any) -> Iterator[Any]:
    served.model.output_guard = OutputGuard("scripted", judge, **({"seconds": 5.0} | options))
    yield judge


def moderation(mode: str) -> dict[str, Any]:
    return {"moderation": {"model": "any", "policy": {"output": {"mode": mode}}}}


def post(served: Served, path: str = "chat/completions", **fields: Any) -> httpx2.Response:
    body = {"model": NAME, "messages": MESSAGES, **fields}
    return httpx2.post(f"{served.address}/v1/{path}", json=body, timeout=30.0, trust_env=False)


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said(answer: httpx2.Response) -> tuple[str, str, str | None]:
    """Content, refusal and finish reason, whole or streamed."""
    if answer.headers["content-type"].startswith("application/json"):
        (choice,) = answer.json()["choices"]
        message = choice["message"]
        return message["content"] or "", message["refusal"] or "", choice["finish_reason"]
    choices = [event["choices"][0] for event in events(answer) if event.get("choices")]
    content = "".join(choice["delta"].get("content") or "" for choice in choices)
    refusal = "".join(choice["delta"].get("refusal") or "" for choice in choices)
    return content, refusal, choices[-1]["finish_reason"] if choices else None


def metric(served: Served, name: str, **labels: str) -> float:
    return served.model.metrics.registry.get_sample_value(f"safevlm:{name}", labels) or 0.0


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_flagged_is_withheld_and_a_good_one_is_whole(
    front: Served, recorder: Recorder, stream: bool
) -> None:
    with judged_by(front, Scripted()) as judge:
        recorder.says("There is ", "a bra", "x .")
        before = metric(front, "requests_total", action="withheld")
        answer = post(front, stream=stream, **moderation("score"))  # a request makes nothing laxer
        content, refusal, finish = said(answer)
        assert (content, finish) == ("", "content_filter") and refusal and BAD not in refusal
        told = (events(answer)[-1] if stream else answer.json())["moderation"]["output"]["results"][0]
        assert told["flagged"] and told["categories"] == {BAD: True}
        assert metric(front, "requests_total", action="withheld") == before + 1
        recorder.says("There is ", "a cup .", finish="length")
        assert said(post(front, stream=stream)) == ("There is a cup .", "", "length")
        assert judge.shown == ["There is a brax .", "There is a cup ."]


@pytest.mark.parametrize("stream", [False, True])
def test_a_withheld_answer_has_the_form_that_it_has_without_an_upstream(
    front: Served, recorder: Recorder, stream: bool
) -> None:
    engine = engines.engine("none").behind(Watching())
    answers = []
    with serving(engine) as own, engines.answering(engine, "there is a cup"):
        own.model.name = THERE
        for served in (front, own):
            recorder.says("there is a cup")
            with judged_by(served, Scripted([True])):
                answer = post(served, stream=stream, model=served.model.name, **moderation("block"))
            answers.append(events(answer) if stream else [answer.json()])
    plain = [[_anonymous(each) for each in answer] for answer in answers]
    assert plain[0] == plain[1]


def _anonymous(told: dict[str, Any]) -> dict[str, Any]:
    """Without what hangs on the server: names, times, counts."""
    moderated = json.loads(json.dumps(told.get("moderation", {})).replace(THERE, NAME))
    return {key: value for key, value in told.items() if key not in ("id", "created", "model", "usage")} | {
        "moderation": moderated
    }


def test_usage_and_our_name_stand_in_an_answer_that_is_written_anew(front: Served, recorder: Recorder) -> None:
    with judged_by(front, Scripted()):
        told = post(front).json()
        assert told["usage"] == upstreams.COMPLETION["usage"] and told["model"] == NAME
        assert told["id"] != upstreams.COMPLETION["id"] and "theirs" not in told


def test_a_stream_that_is_flagged_ends_the_upstreams_call(front: Served, recorder: Recorder) -> None:
    recorder.answer = (200, EVENTS, [upstreams.chunk("a cup "), upstreams.chunk("a brax"), HANGS])
    started = time.monotonic()
    with judged_by(front, Scripted(), window=4):
        content, refusal, finish = said(post(front, stream=True))
    assert (content, finish) == ("a cup ", "content_filter") and "beginning" in refusal
    assert time.monotonic() - started < 5
    while not recorder.has_left:
        assert time.monotonic() - started < 10
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "audio", "annotations"])
def test_what_stands_beside_the_words_is_left_out_of_a_judged_answer(
    front: Served, recorder: Recorder, key: str, stream: bool
) -> None:
    recorder.says("a cup", **{key: SECRET})
    with judged_by(front, Scripted()):
        answer = post(front, stream=stream)
    assert said(answer) == ("a cup", "", "stop") and SECRET not in answer.text


CALL = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": SECRET}}]
ODD: dict[str, dict[str, Any]] = {
    "calls of tools": {"tool_calls": CALL},
    "a call of the older form": {"function_call": CALL[0]["function"]},
    "parts": {"content": [{"type": "text", "text": SECRET}]},
    "half a character": {"content": f"{SECRET}\ud83d"},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_an_answer_that_is_not_words_alone_is_an_error_where_answers_are_judged_first(
    front: Served, recorder: Recorder, name: str, stream: bool
) -> None:
    recorder.says("a ", **ODD[name])
    with judged_by(front, Scripted()):
        answer = post(front, stream=stream)
    assert answer.status_code == 502 and SECRET not in answer.text
    assert answer.json()["error"]["code"] == "upstream_shape"


@pytest.mark.parametrize("choices", [[0, 1], [1], [0, 0]])
def test_several_answers_are_an_error_where_answers_are_judged_first(
    front: Served, recorder: Recorder, choices: list[int]
) -> None:
    several = [{"index": index, "delta": {"content": SECRET}, "finish_reason": None} for index in choices]
    recorder.answer = (200, EVENTS, [upstreams.chunk("a ", choices=several), DONE])
    with judged_by(front, Scripted()):
        answer = post(front, stream=True)
    assert answer.status_code == 502 and SECRET not in answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True, "top_logprobs": 2},
        {"tools": [{"type": "function", "function": {"name": "look"}}]},
        {"tools": [{"type": "function", "function": {"name": "look"}}], "tool_choice": "required"},
    ],
)
def test_a_request_for_more_than_words_is_an_error_where_answers_are_judged_first(
    front: Served, recorder: Recorder, fields: dict[str, Any]
) -> None:
    assert post(front, **fields).status_code == 200
    assert post(front, **fields, **moderation("block")).json()["error"]["code"] == "not_available"
    asked_before = len(recorder.bodies)
    with judged_by(front, Scripted(), mode="score"):
        assert post(front, **fields).status_code == 200
        error = post(front, **fields, **moderation("block")).json()["error"]
        assert (error["code"], error["param"]) == ("not_available", next(iter(fields)))
    with judged_by(front, Scripted()):
        assert post(front, **fields).status_code == 400
    assert len(recorder.bodies) == asked_before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_upstreams_own_is_one_in_our_words(front: Served, recorder: Recorder, stream: bool) -> None:
    recorder.says(finish="content_filter", refusal=SECRET)
    with judged_by(front, Scripted()):
        before = metric(front, "requests_total", action="passed")
        answer = post(front, stream=stream)
        content, refusal, finish = said(answer)
    assert (content, finish) == ("", "content_filter") and refusal and SECRET not in answer.text
    assert metric(front, "requests_total", action="passed") == before + 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_a_judge_that_breaks_refuses_the_answer_and_turns_health_red(
    front: Served, recorder: Recorder, stream: bool, window: int | None
) -> None:
    recorder.says("a cup")
    with judged_by(front, Scripted([None] * 9), window=window):
        answer = post(front, stream=stream, **moderation("score"))
        content, refusal, finish = said(answer)
        assert (content, finish) == ("", "content_filter") and refusal
        told = (events(answer)[-1] if stream else answer.json())["moderation"]["output"]
        assert told["type"] == "error"
        assert httpx2.get(f"{front.address}/healthz", trust_env=False).status_code == 503
    front.model.health.output = ""


@pytest.mark.parametrize("stream", [False, True])
def test_scores_cost_an_answer_nothing_and_leave_its_bytes_as_they_are(
    front: Served, recorder: Recorder, stream: bool, tmp_path: Path
) -> None:
    path = tmp_path / "record.jsonl"
    recorder.says("a ", "brax", reasoning_content="so", tool_calls=CALL)
    assert recorder.answer is not None and recorder.whole is not None
    own = b"".join(recorder.answer[2] if stream else recorder.whole)
    with judged_by(front, Scripted(may_judge=Event()), mode="score") as judge:
        front.model.keepers.append(DecisionRecord(path))
        assert post(front, stream=stream).content == own
        assert path.read_text() == ""
        judge.may_judge.set()
        deadline = time.monotonic() + 10
        while not path.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        row = json.loads(path.read_text())
        assert row["output"]["flagged"] and row["action"] == "passed"
        assert all(words in judge.shown[0] for words in ("a brax", "so", SECRET))
        answer = post(front, stream=stream, **moderation("score"))
        told = (events(answer)[-1] if stream else answer.json())["moderation"]["output"]
        assert told["results"][0]["flagged"] and said_words(answer) == "a brax"
        assert not stream or answer.content.endswith(DONE)


def said_words(answer: httpx2.Response) -> str:
    if answer.headers["content-type"].startswith("application/json"):
        return str(answer.json()["choices"][0]["message"]["content"])
    choices = [event["choices"][0] for event in events(answer) if event.get("choices")]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_what_cannot_be_read_has_no_score(front: Served, recorder: Recorder) -> None:
    several = [{"index": index, "delta": {"content": "a"}, "finish_reason": None} for index in (0, 1)]
    recorder.answer = (200, EVENTS, [upstreams.chunk("a ", choices=several), DONE])
    with judged_by(front, Scripted(), mode="score") as judge:
        answer = post(front, stream=True, **moderation("score"))
        assert events(answer)[-1]["moderation"]["output"]["type"] == "error" and not judge.shown
    front.model.health.output = ""


@pytest.mark.parametrize(
    "pieces", [[upstreams.chunk("a cup "), BREAKS_OFF], [upstreams.chunk("a cup "), b"data: {\n\n"]]
)
def test_half_an_answer_is_not_sent_unjudged(front: Served, recorder: Recorder, pieces: list[bytes]) -> None:
    recorder.answer = (200, EVENTS, pieces)
    with judged_by(front, Scripted()):
        answer = post(front, stream=True)
        assert answer.status_code == 502 and "cup" not in answer.text
    with judged_by(front, Scripted(), window=3):
        answer = post(front, stream=True)
        assert answer.status_code == 200 and "[DONE]" not in answer.text
        assert said(answer)[0] == "a cup " and "error" in events(answer)[-1]


@pytest.mark.parametrize(("verdict", "finish"), [("Yes, it is.", "content_filter"), ("no.", "stop")])
def test_the_upstreams_model_judges_its_own_answer(
    front: Served, recorder: Recorder, verdict: str, finish: str
) -> None:
    guard = front.model.output_guard = built(front, "--output-guard", "self-check", "--hold-back", "20")
    assert guard.window == 20
    recorder.says("a </s> cup")
    recorder.whole = [json.dumps(upstreams.COMPLETION).replace("A cup.", verdict).encode()]
    assert said(post(front, stream=True))[2] == finish
    told = recorder.bodies[-1]["messages"][-1]["content"]
    assert [part["type"] for part in told] == ["image_url", "text"] and recorder.bodies[-1]["model"] == THERE
    assert "a < /s> cup" in told[1]["text"] and "What is it?" in told[1]["text"]
    recorder.answer, recorder.whole = (200, EVENTS, [upstreams.chunk("a cup"), DONE]), [b"{}"]
    assert said(post(front, stream=True))[0] == ""
    front.model.health.output = ""
