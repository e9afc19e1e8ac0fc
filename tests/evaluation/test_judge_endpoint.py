"""A judge behind a server that misbehaves: nothing is lost, nothing is scored wrongly."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from safevlm.evaluation import endpoint
from safevlm.evaluation.endpoint import CallOutcome, Endpoint, EndpointError, Turn, call_all
from tests.evaluation.scripted_judge import (
    BROKEN,
    CUT,
    FILTER,
    HALF_JSON,
    HTML,
    NO_CHOICES,
    RATE_LIMIT,
    Hang,
    Raw,
    Say,
    Script,
    Step,
    serving,
)

QUESTION = [Turn("user", "How good?")]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def say(script: Script, retries: int = 1, timeout: float = 5.0) -> tuple[CallOutcome, int]:
    """The outcome of one call and how many tries it took."""
    with serving(script) as server:
        asked = Endpoint("m", server.url, timeout, retries, endpoint.greedy("m", 16))
        return endpoint.say(endpoint.connect(asked), asked, QUESTION), len(server.bodies)


def always(step: Step) -> Script:
    return lambda prompt, number: step


def first(step: Step, then: Step) -> Script:
    return lambda prompt, number: then if number else step


def test_an_answer_comes_with_its_tokens_and_with_the_model_that_gave_it() -> None:
    outcome, tries = say(always(Say("8")))
    assert outcome == CallOutcome("said", "8", False, 7, 3, "scripted-2026-01-01 fp1")
    assert tries == 1


@pytest.mark.parametrize("step", [RATE_LIMIT, BROKEN, CUT], ids=["429", "500", "cut"])
def test_a_passing_fault_is_tried_again(step: Step) -> None:
    outcome, tries = say(first(step, Say("8")))
    assert (outcome.kind, outcome.text, tries) == ("said", "8", 2)


@pytest.mark.parametrize(
    ("step", "tries"),
    [
        (RATE_LIMIT, 2),
        (BROKEN, 2),
        (CUT, 2),
        (HTML, 1),
        (HALF_JSON, 1),
        (NO_CHOICES, 1),
        (Raw(b"[1]"), 1),
        (Raw(b'{"choices": [{"message": {"content": 10}}]}'), 1),
        (Raw(b'{"error": {}}', 400), 1),
    ],
    ids=["429", "500", "cut", "html", "half json", "no choices", "list", "number", "400"],
)
def test_a_lasting_fault_is_a_failure_and_no_text_for_anyone_to_score(step: Step, tries: int) -> None:
    outcome, tried = say(always(step))
    assert (outcome.kind, tried) == ("failed", tries)


def test_a_server_that_hangs_times_out() -> None:
    started = time.perf_counter()
    outcome, _ = say(always(Hang(3)), retries=0, timeout=0.3)
    assert outcome.kind == "failed" and "Timeout" in outcome.text
    assert time.perf_counter() - started < 3


def test_a_wait_that_the_server_asks_for_is_kept() -> None:
    limit = Raw(b"{}", 429, headers={"Retry-After": "1"})
    started = time.perf_counter()
    assert say(first(limit, Say("8")))[0].kind == "said"
    assert time.perf_counter() - started >= 1


@pytest.mark.parametrize(
    "step",
    [FILTER, Say(None), Say("8", finish="content_filter"), Say("8", refusal="no")],
    ids=["400", "no content", "finish", "refusal"],
)
def test_a_filtered_answer_is_refused_and_not_failed(step: Step) -> None:
    outcome, tries = say(always(step))
    assert (outcome.kind, tries) == ("refused", 1)


def test_a_text_that_was_cut_off_says_so() -> None:
    assert say(always(Say("The answer says VERDICT: safe", finish="length")))[0].is_cut


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_everything_and_repeats_no_key(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with pytest.raises(EndpointError, match="--base-url, OPENAI_API_KEY and the model 'm'") as told:
        say(always(Raw(b'{"error": {"message": "Incorrect key sk-secret"}}', status)))
    assert "secret" not in str(told.value)


def test_a_failure_repeats_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    outcome, _ = say(always(Raw(b'{"error": {"message": "bad sk-secret"}}', 422)))
    assert "***" in outcome.text and "secret" not in outcome.text


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (Endpoint("m"), "no address of the server: give --base-url, or set OPENAI_BASE_URL"),
        (Endpoint("m", "https://api.example.org/v1"), "OPENAI_API_KEY is not set"),
        (Endpoint("m", "nonsense"), "is no address"),
        (Endpoint("m", "http://me:word@127.0.0.1/v1"), "put the key into OPENAI_API_KEY"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_before_a_call(server: Endpoint, message: str) -> None:
    with pytest.raises(EndpointError, match=message):
        endpoint.connect(server)


@pytest.mark.parametrize("model", ["o3-mini", "gpt-5", "openai/gpt-5-nano"])
def test_reasoning_models_get_no_temperature_and_room_to_think(model: str) -> None:
    assert set(endpoint.greedy(model, 16)) == {"max_completion_tokens"}
    assert endpoint.greedy(model, 16)["max_completion_tokens"] > 1000


@pytest.mark.parametrize("model", ["gpt-4o", "llava-o1", "Llama-Guard-4-12B"])
def test_other_models_are_greedy(model: str) -> None:
    assert endpoint.greedy(model, 16) == {"temperature": 0, "max_tokens": 16, "seed": 0}


def test_no_more_calls_are_under_way_than_allowed() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def call(job: int) -> CallOutcome:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return CallOutcome("said", str(job))

    heard = dict(call_all(range(30), call, concurrency=4))
    assert {job: outcome.text for job, outcome in heard.items()} == {job: str(job) for job in range(30)}
    assert 2 <= most <= 4


def test_a_dead_server_is_given_up() -> None:
    heard = dict(call_all(range(1000), lambda job: CallOutcome("failed", "gone"), concurrency=4, give_up_after=10))
    assert 10 <= len(heard) < 20, "the rest never comes, and its caller counts it as failed"


def test_failures_apart_from_each_other_do_not_end_the_run() -> None:
    def call(job: int) -> CallOutcome:
        return CallOutcome("said" if job % 3 == 0 else "failed", "")

    assert len(dict(call_all(range(300), call, concurrency=1, give_up_after=3))) == 300


def test_a_missing_image_is_an_error_and_no_call(tmp_path: Path) -> None:
    with serving(always(Say("8"))) as server:
        asked = Endpoint("m", server.url)
        with pytest.raises(ValueError, match="gone.png"):
            endpoint.say(endpoint.connect(asked), asked, [Turn("user", "?", (tmp_path / "gone.png",))])
        assert not server.bodies
