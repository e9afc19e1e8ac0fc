"""`/v1/responses` with OpenAI's own client: the engine's answers, every event in order, and honest errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from safevlm.defenses import Policy, prompts
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Request
from tests.engine import engines
from tests.serve.serving import NAME, Served, serving, uri

RISK = ("must_refuse", "illegal")
TOKENS = 12


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engines.engine("safety-head", says=RISK)


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[Served]:
    with serving(engine) as running:
        yield running


@pytest.fixture(scope="module")
def refusing() -> Iterator[Served]:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    with serving(engines.engine("safety-head", says=RISK, policy=policy)) as running:
        yield running


def image(seed: int) -> dict[str, Any]:
    return {"type": "input_image", "image_url": uri(engines.image(seed)), "detail": "auto"}


def user(text: str, *seeds: int) -> dict[str, Any]:
    words = [{"type": "input_text", "text": text}] if text else []
    return {"role": "user", "content": [*map(image, seeds), *words]}


def earlier(text: str) -> dict[str, Any]:
    """An answer as the client hands it back."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


INPUTS: dict[str, tuple[dict[str, Any], Request]] = {
    "words": ({"input": "What is it?"}, Request("What is it?")),
    "words of a message": ({"input": [{"role": "user", "content": "What is it?"}]}, Request("What is it?")),
    "an image": ({"input": [user("What is it?", 1)]}, Request("What is it?", (engines.image(1),))),
    "an image alone": ({"input": [user("", 1)]}, Request("", (engines.image(1),))),
    "two images": (
        {"input": [user("What is it?", 1, 2)]},
        Request("What is it?", (engines.image(1), engines.image(2))),
    ),
    "several turns": (
        {"input": [user("What is it?", 1), earlier("A cup."), user("And this?", 2)], "instructions": "Be brief."},
        Request(
            "And this?",
            (engines.image(1), engines.image(2)),
            history=(("What is it?", "A cup."),),
            system="Be brief.",
            images_per_turn=(1, 1),
        ),
    ),
    "a refusal earlier": (
        {
            "input": [
                user("What is it?"),
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                user("And?"),
            ]
        },
        Request("And?", history=(("What is it?", "No."),)),
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_plain_and_streamed_responses_are_the_engines_own(served: Served, engine: Engine, name: str) -> None:
    options, request = INPUTS[name]
    expected = engine.reply(request, Generation(TOKENS))
    ask = served.client().responses
    plain = ask.create(model=NAME, max_output_tokens=TOKENS, **options)
    events = list(ask.create(model=NAME, max_output_tokens=TOKENS, stream=True, **options))
    last = events[-1].response
    streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert plain.output_text == last.output_text == streamed == expected.text
    for response in (plain, last):
        assert response.status == ("completed" if expected.ended == "stop" else "incomplete")
        assert response.usage.input_tokens == expected.prompt_tokens
        assert response.usage.output_tokens == expected.answer_tokens
    if expected.ended == "length":
        assert plain.incomplete_details.reason == last.incomplete_details.reason == "max_output_tokens"
        assert events[-1].type == "response.incomplete"


def test_an_answer_that_the_model_ends_is_completed_and_the_typed_stream_gives_it(served: Served) -> None:
    options: dict[str, Any] = {"model": NAME, "input": [user("What is it?", 1)]}
    with engines.answering(served.model.engine, "there is a cup</s>"):
        with served.client().responses.stream(**options) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        plain = served.client().responses.create(**options)
    assert final.output_text == plain.output_text == snapshots[-1] == "there is a cup"
    assert final.status == plain.status


KINDS = (
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.{kind}.delta",
    "response.{kind}.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.incomplete",
)


def kinds(events: list[Any]) -> list[str]:
    """Of events, in order, a run of deltas as one."""
    told: list[str] = []
    for event in events:
        if not (told and told[-1] == event.type and event.type.endswith(".delta")):
            told.append(event.type)
    return told


@pytest.mark.parametrize("kind", ["output_text", "refusal"])
def test_events_come_in_their_order_with_their_numbers(served: Served, refusing: Served, kind: str) -> None:
    asked = refusing if kind == "refusal" else served
    events = list(
        asked.client().responses.create(model=NAME, input=[user("What is it?", 1)], max_output_tokens=6, stream=True)
    )
    assert kinds(events) == [each.format(kind=kind) for each in KINDS]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    items = {event.item_id for event in events if "part" in event.type or kind in event.type}
    assert items == {events[2].item.id} == {events[-1].response.output[0].id}
    assert {events[0].response.id} == {events[-1].response.id}
    assert events[-2].item.to_dict() == events[-1].response.output[0].to_dict()
    assert events[-3].part.to_dict() == events[-1].response.output[0].content[0].to_dict()


def test_a_refused_response_is_incomplete_with_a_refusal(refusing: Served) -> None:
    ask = refusing.client().responses
    options: dict[str, Any] = {"model": NAME, "input": [user("What is it?", 1)], "moderation": {"model": "any"}}
    plain = ask.create(**options)
    last = list(ask.create(**options, stream=True))[-1].response
    for response in (plain, last):
        part = response.output[0].content[0]
        assert (part.type, part.refusal) == ("refusal", prompts.refusal(DEFAULT, "illegal"))
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
        assert response.output_text == ""
        result = response.moderation.input
        assert result.type == "moderation_result" and result.flagged and result.categories["illegal"]
        assert result.category_scores["illegal"] > 0.9


def test_a_response_can_be_put_into_the_next_request(served: Served) -> None:
    ask = served.client().responses
    asked: list[Any] = [user("What is it?", 1)]
    first: Response = ask.create(model=NAME, input=asked, max_output_tokens=4)
    typed = [item.model_dump(exclude_none=True) for item in first.output]
    assert ask.create(model=NAME, input=[*asked, *typed, user("And?")], max_output_tokens=4).output_text


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model": "gpt-9"}, "model"),
    "nothing": ({"input": []}, "input"),
    "an empty text": ({"input": ""}, "input"),
    "an earlier response": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "a conversation": ({"conversation": "conv_1"}, "conversation"),
    "the background": ({"background": True}, "background"),
    "tools": ({"tools": [{"type": "web_search"}]}, "tools"),
    "a stored prompt": ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    "a cut conversation": ({"truncation": "auto"}, "truncation"),
    "a form of answer": (
        {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}},
        "text.format.type",
    ),
    "an unknown field": ({"extra_body": {"guard": "off"}}, "guard"),
    "a reference": ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    "a call": ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input[0]"),
    "a file": (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "AAAA"}]}]},
        "input[0].content[0]",
    ),
    "an uploaded image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
        "input[0].content[0]",
    ),
    "an image on the network": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x.y/z.png"}]}]},
        "input[0].content[0].image_url",
    ),
    "an image as in a chat": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": {"url": "data:,"}}]}]},
        "input[0].content[0].image_url",
    ),
    "an image in an answer": (
        {"input": [user("a"), {"role": "assistant", "content": [image(1)]}, user("b")]},
        "input",
    ),
    "two questions in a row": ({"input": [user("a"), user("b")]}, "input"),
    "a cold temperature": ({"temperature": -1}, "temperature"),
    "an output guard": (
        {"moderation": {"model": "any", "policy": {"output": {"mode": "block"}}}},
        "moderation.policy.output",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_served_is_an_error_that_names_the_field(served: Served, name: str) -> None:
    changed, param = WRONG[name]
    options: dict[str, Any] = {"model": NAME, "input": "What is it?", "max_output_tokens": 4} | changed
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            list(served.client().responses.create(**options, stream=stream))
        assert 400 <= caught.value.status_code < 500
        assert (caught.value.param or "").startswith(param)


def test_errors_count_the_items_of_the_body_and_not_the_instructions(served: Served) -> None:
    broken = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().responses.create(model=NAME, input=[broken], instructions="Be brief.")
    assert caught.value.param == "input[0].content[0].image_url"
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]"):
        served.client().responses.create(model=NAME, input=[user("a"), user("b")], instructions="Be brief.")


def test_fields_without_an_effect_are_taken(served: Served) -> None:
    done = served.client().responses.create(
        model=NAME,
        input="What is it?",
        max_output_tokens=4,
        store=True,
        metadata={"a": "b"},
        reasoning={"effort": "low"},
        text={"format": {"type": "text"}, "verbosity": "low"},
        include=[],
        tools=[],
        tool_choice="auto",
        truncation="disabled",
        safety_identifier="x",
    )
    assert done.output_text and done.previous_response_id is None
