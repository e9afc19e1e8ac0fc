"""The guard of answers: nothing that it was not shown is sent, and what breaks in it refuses or is told."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request

from safevlm.commands import output_guards
from safevlm.serve.output_guard import AnswerVerdict, OutputGuard
from safevlm.serve.record import DecisionRecord
from safevlm.usage import UsageError
from tests.engine import engines
from tests.serve.serving import NAME, Served, asked, listening, serving

ANSWER = "There is a cup . There is a brax . There is a ball ."
BAD = "brax"
ANSWERED = "length"
"""How a scripted answer ends."""
MESSAGES = [asked("What is it?", engines.image(1))]


@dataclass
class Scripted:
    """A judge that flags a word, or breaks; it keeps what it was shown."""

    breaks: Any = None
    shown: list[str] = field(default_factory=list)

    async def __call__(self, request: Any, text: str) -> AnswerVerdict:
        self.shown.append(text)
        if self.breaks is not None:
            return await self.breaks()
        return AnswerVerdict("scripted", BAD in text, {BAD: BAD in text}, {BAD: float(BAD in text)})


@contextmanager
def guarded(says: str = ANSWER, breaks: Any = None, **options: Any) -> Iterator[tuple[Served, Scripted]]:
    engine = engines.engine("safety-head", own=engines.model(("safe", "clean")), says=("safe", "clean"))
    judge = Scripted(breaks)
    with serving(engine) as served, engines.answering(engine, says):
        served.model.output_guard = OutputGuard("scripted", judge, **({"seconds": 5.0} | options))
        yield served, judge


def moderation(mode: str) -> dict[str, Any]:
    return {"moderation": {"model": "any", "policy": {"output": {"mode": mode}}}}


def ask(served: Served, mode: str | None = None, **options: Any) -> Any:
    given = {"extra_body": moderation(mode)} if mode else {}
    return served.client().chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=40, **given, **options)


@dataclass
class Stream:
    content: str
    refusal: str
    finish: str | None
    output: Any


def streamed(served: Served, mode: str | None = None) -> Stream:
    pieces = list(ask(served, mode, stream=True))
    choices = [piece.choices[0] for piece in pieces if piece.choices]
    told = [piece.moderation for piece in pieces if piece.moderation]
    return Stream(
        "".join(choice.delta.content or "" for choice in choices),
        "".join(choice.delta.refusal or "" for choice in choices),
        choices[-1].finish_reason,
        told[-1].output if told else None,
    )


def metric(served: Served, name: str, **labels: str) -> float:
    return served.model.metrics.registry.get_sample_value(f"safevlm:{name}", labels) or 0.0


def test_an_answer_that_is_flagged_is_withheld_and_a_good_one_is_whole() -> None:
    with guarded() as (served, judge):
        choice = ask(served, "score").choices[0]  # a request makes nothing laxer
        assert (choice.finish_reason, choice.message.content) == ("content_filter", None)
        assert choice.message.refusal
        stream = streamed(served, "block")
        assert (stream.content, stream.finish) == ("", "content_filter") and stream.refusal
        assert stream.output.results[0].flagged and stream.output.results[0].categories == {BAD: True}
        assert judge.shown[0] == judge.shown[1] and BAD in judge.shown[0]
        assert metric(served, "requests_total", action="withheld") == 2
        assert (
            metric(served, "verdicts_total", detector="scripted", category=BAD, level="flagged", source="output") == 2
        )
    with guarded("There is a cup .") as (served, _):
        plain, stream = ask(served, "block"), streamed(served)
        assert plain.choices[0].message.content == stream.content != ""
        assert not plain.moderation.output.results[0].flagged and stream.finish == ANSWERED


def test_a_window_lets_out_only_what_was_judged_and_ends_in_a_refusal_that_says_so() -> None:
    with guarded(window=6) as (served, judge):
        stream = streamed(served, "score")
        assert stream.content and BAD not in stream.content and ANSWER.startswith(stream.content.strip())
        assert stream.content in judge.shown and stream.finish == "content_filter"
        assert "beginning" in stream.refusal and stream.output.results[0].flagged
    with guarded("There is a cup .", window=4) as (served, judge):
        assert streamed(served).content == judge.shown[-1]
        assert len(judge.shown) > 1 and all(judge.shown[-1].startswith(shown) for shown in judge.shown)


async def raises() -> AnswerVerdict:
    raise ConnectionError(ANSWER)


async def hangs() -> AnswerVerdict:
    await asyncio.sleep(60)
    raise AssertionError


async def gives_nothing() -> Any:
    return None


async def gives_nan() -> AnswerVerdict:
    return AnswerVerdict("scripted", False, {}, {"a": float("nan")})


@pytest.mark.parametrize("breaks", [raises, hangs, gives_nothing, gives_nan])
@pytest.mark.parametrize("window", [None, 4])
def test_a_judge_that_breaks_refuses_the_answer_and_turns_health_red(
    breaks: Any, window: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(breaks=breaks, seconds=0.2, window=window) as (served, _):
        stream = streamed(served, "score")
        assert (stream.content, stream.finish, stream.output.type) == ("", "content_filter", "error")
        assert metric(served, "guard_errors_total", stage="output") == 1
        assert served.client()._client.get(f"{served.address}/healthz").status_code == 503
        assert "brax" not in caplog.text


def test_scores_cost_an_answer_nothing_and_are_counted_and_recorded(tmp_path: Path) -> None:
    may_judge = Event()

    async def slow() -> AnswerVerdict:
        while not may_judge.is_set():
            await asyncio.sleep(0.01)
        return AnswerVerdict("scripted", True, {BAD: True}, {BAD: 0.75})

    path = tmp_path / "record.jsonl"
    with guarded(breaks=slow, mode="score", seconds=30) as (served, _):
        served.model.keepers.append(DecisionRecord(path))
        assert ask(served).choices[0].finish_reason == ANSWERED
        assert path.read_text() == ""
        may_judge.set()
        assert ask(served, "block").choices[0].finish_reason == "content_filter"
        scored = ask(served, "score")
        assert scored.choices[0].finish_reason == ANSWERED and scored.moderation.output.results[0].flagged
        until(lambda: len(path.read_text().splitlines()) == 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["output"]["flagged"] and row["output"]["scores"] == {BAD: 0.75} for row in rows)
    assert sorted(row["action"] for row in rows) == ["passed", "passed", "withheld"]


def test_a_failed_score_is_the_error_arm() -> None:
    with guarded(breaks=raises, mode="score") as (served, _):
        done = ask(served, "score")
        assert done.choices[0].message.content and done.moderation.output.type == "error"
        assert streamed(served, "score").output.type == "error"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_a_guard_of_answers_a_block_is_an_error_and_a_score_is_the_error_arm() -> None:
    with guarded() as (served, _):
        served.model.output_guard = None
        with pytest.raises(openai.BadRequestError) as caught:
            ask(served, "block")
        assert (caught.value.param, caught.value.code) == ("moderation.policy.output", "not_available")
        assert ask(served, "score").moderation.output.type == "error"


def built(served: Served, *flags: str) -> OutputGuard:
    parser = argparse.ArgumentParser()
    output_guards.flags(parser)
    guard = output_guards.output_guard(served.model, parser.parse_args(["--output-timeout", "20", *flags]))
    assert guard is not None
    return guard


@pytest.mark.parametrize(("says", "finish"), [("yes .", "content_filter"), ("no .", ANSWERED)])
def test_the_model_judges_its_own_answer(says: str, finish: str) -> None:
    with guarded(says) as (served, _):
        served.model.output_guard = built(served, "--output-guard", "self-check")
        assert ask(served).choices[0].finish_reason == finish
        assert streamed(served).finish == finish


def judging() -> FastAPI:
    """A server with a moderation endpoint and a model that judges; both know one bad word."""
    app = FastAPI()

    @app.post("/v1/moderations")
    async def moderations(request: Request) -> dict[str, Any]:
        is_bad = BAD in (await request.json())["input"]
        result = {"flagged": is_bad, "categories": {"violence": is_bad}, "category_scores": {"violence": float(is_bad)}}
        return {"id": "1", "model": "any", "results": [result]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, Any]:
        said = "VERDICT: unsafe" if BAD in json.dumps(await request.json()) else "VERDICT: safe"
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "any", "choices": [choice]}

    return app


@pytest.mark.parametrize("name", ["moderations", "safety", "safety_with_image"])
def test_an_endpoint_or_a_judge_of_ours_judges_answers(name: str) -> None:
    with listening(judging()) as address:
        flags = ["--output-guard", name, "--output-url", f"{address}/v1", "--output-model", "any"]
        for says, finish in ((ANSWER, "content_filter"), ("There is a cup .", ANSWERED)):
            with guarded(says) as (served, _):
                served.model.output_guard = built(served, *flags)
                assert ask(served).choices[0].finish_reason == finish
    with guarded() as (served, _):
        served.model.output_guard = built(served, *flags)  # nobody listens there any more
        assert ask(served, "score").moderation.output.type == "error"


def test_a_judge_without_a_model_judges_answers_unless_it_needs_its_suites_truth() -> None:
    with guarded("I cannot help with that .") as (served, _):
        served.model.output_guard = built(served, "--output-guard", "refusal")
        assert ask(served, "score").moderation.output.results[0].flagged is False
        for name in ("choice", "miniature", "no-such-judge", "safety"):
            with pytest.raises(UsageError, match=r"--output-guard"):
                built(served, "--output-guard", name)
        with pytest.raises(UsageError, match="--hold-back"):
            built(served, "--output-guard", "self-check", "--hold-back", "20")
