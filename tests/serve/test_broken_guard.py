"""A detector that raises, hangs or gives nan lets nothing through; health turns red, and green after a good answer."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import httpx2
import openai
import pytest

from safevlm.defenses import Defense, ImageFeatures
from safevlm.engine.guard import OnError
from safevlm.types import Request, Verdict
from tests.engine import engines
from tests.serve.serving import NAME, Served, asked, image_part, serving

SECONDS = 0.5
"""That a request may last."""


class Moody(Defense):
    """Looks as it is told to: `mood` is well, raises, leaves, hangs or nan."""

    name = "moody"

    def __init__(self) -> None:
        self.mood = "well"
        self.goes_on = Event()

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        if self.mood == "raises":
            raise OSError("/home/somebody/secret.bin is gone")
        if self.mood == "leaves":
            raise SystemExit(3)
        if self.mood == "hangs":
            self.goes_on.wait(20.0)
        sure = math.nan if self.mood == "nan" else 1.0
        return Verdict(level_probabilities={"safe": sure}, source=self.name)


@pytest.fixture
def moody() -> Iterator[tuple[Served, Moody]]:
    defense = Moody()
    with serving(engines.engine("none").behind(defense), seconds=SECONDS) as served:
        yield served, defense
        defense.goes_on.set()


def ask(served: Served, **options: Any) -> Any:
    """The answer, or the error, of a short question about an image."""
    try:
        messages = [asked("What is it?", engines.image(1))]
        return served.client().chat.completions.create(
            model=NAME, messages=messages, max_tokens=3, extra_body={"moderation": {"model": "any"}}, **options
        )
    except openai.APIStatusError as error:
        return error


def health(served: Served) -> int:
    return httpx2.get(f"{served.address}/healthz").status_code


def errors(served: Served) -> float:
    """Guard errors that the metrics have counted, of any stage."""
    page = httpx2.get(f"{served.address}/metrics").text
    return sum(map(float, re.findall(r"safevlm:guard_errors_total{[^}]*} (\S+)", page)))


@pytest.mark.parametrize("mood", ["raises", "nan"])
def test_a_broken_detector_refuses_turns_health_red_and_is_counted(moody: tuple[Served, Moody], mood: str) -> None:
    served, defense = moody
    assert ask(served).choices[0].finish_reason == "length" and health(served) == 200
    defense.mood = mood
    answer = ask(served)
    assert answer.choices[0].finish_reason == "content_filter" and answer.choices[0].message.content is None
    assert answer.moderation.input.type == "error" and "secret" not in answer.model_dump_json()
    pieces = list(ask(served, stream=True))
    assert not any(choice.delta.content for piece in pieces for choice in piece.choices)
    assert pieces[-1].moderation.input.type == "error"
    assert (health(served), errors(served)) == (503, 2)
    defense.mood = "well"
    assert ask(served).choices[0].finish_reason == "length" and health(served) == 200


@pytest.mark.parametrize("on_error", ["refuse", "allow"])
def test_moderation_says_what_became_of_a_request_whose_detector_failed(on_error: OnError) -> None:
    engine = engines.engine("none")
    broken = Moody()
    broken.mood = "raises"
    with serving(engine.behind(broken, on_error=on_error)) as served:
        answer = ask(served)
    assert answer.moderation.input.type == "error"
    is_refused = answer.choices[0].finish_reason == "content_filter"
    assert is_refused == (on_error == "refuse")
    assert ("was not let through" in answer.moderation.input.message) == is_refused


def test_a_detector_that_ends_the_process_ends_its_request_alone(moody: tuple[Served, Moody]) -> None:
    served, defense = moody
    defense.mood = "leaves"
    assert ask(served).status_code == 500
    assert (health(served), errors(served)) == (503, 1)
    defense.mood = "well"
    assert ask(served).choices[0].finish_reason == "length" and health(served) == 200


def test_a_hanging_detector_answers_nobody_and_makes_nobody_wait_for_ever(
    moody: tuple[Served, Moody], caplog: pytest.LogCaptureFixture
) -> None:
    served, defense = moody
    defense.mood = "hangs"
    assert ask(served).status_code == 504
    assert health(served) == 503
    time.sleep(SECONDS / 2)  # the batch has now lasted longer than a request may
    started = time.monotonic()
    for stream in (False, True):
        late = ask(served, stream=stream)
        assert late.status_code == 503 and late.response.headers["Retry-After"]
    assert time.monotonic() - started < 10 * SECONDS, "a request waits for a batch that does not end"
    assert errors(served) == 3
    assert len([record for record in caplog.records if record.name.startswith("safevlm.serve")]) == 3, (
        "a cause is untold"
    )
    defense.mood = "well"
    defense.goes_on.set()
    deadline = time.monotonic() + 10.0
    while served.model.batches.is_stuck and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(served).choices[0].finish_reason == "length" and health(served) == 200


def test_images_that_do_not_open_in_time_are_let_through_to_nobody(
    moody: tuple[Served, Moody], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, defense = moody
    monkeypatch.setattr(served.model.images, "opened", lambda *_: defense.goes_on.wait(20.0))
    started = time.monotonic()
    assert ask(served).status_code == 504 and time.monotonic() - started < 10 * SECONDS
    with pytest.raises(openai.InternalServerError, match="in time"):
        served.client().moderations.create(input=[image_part(engines.image(1))])
    defense.goes_on.set()


def test_a_stream_that_stops_in_its_middle_ends_as_an_error(moody: tuple[Served, Moody]) -> None:
    served, _ = moody
    engine, goes_on = served.model.engine, Event()
    generate = engine.model.generate

    def stalling(stopping_criteria: Any = (), **inputs: Any) -> Any:
        def stall(ids: Any, scores: Any, **_: Any) -> Any:
            over = stopping_criteria[0](ids, scores)
            if ids.shape[1] - inputs["input_ids"].shape[1] > 8:
                goes_on.wait(20.0)
            return over

        return generate(stopping_criteria=[stall], **inputs)

    with engines.generating(engine, stalling):
        started = time.monotonic()
        with pytest.raises(openai.APIError, match="in time"):
            list(
                served.client().chat.completions.create(
                    model=NAME, messages=[asked("What is it?")], max_tokens=40, stream=True
                )
            )
        assert time.monotonic() - started < 10 * SECONDS
        goes_on.set()
    assert health(served) == 503
