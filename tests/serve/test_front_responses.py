"""`/v1/responses` in front of another server: what goes on to it as a chat, and how its words come back."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from safevlm.defenses import Policy, prompts
from safevlm.serve.output_guard import OutputGuard
from safevlm.taxonomy import DEFAULT
from tests.engine import engines
from tests.serve import upstreams
from tests.serve.serving import NAME, Served, serving, uri
from tests.serve.test_front import ODD, ODD_STREAMS, waited
from tests.serve.test_front_output import BAD, Scripted
from tests.serve.test_responses_api import WRONG, earlier, image, kinds, user
from tests.serve.upstreams import DONE, EVENTS, HANGS, JSON, THERE, Recorder, Watching, fronting, told_chunk

RISK = ("must_refuse", "illegal")
END = told_chunk({"index": 0, "delta": {}, "finish_reason": "stop"})


@pytest.fixture
def recorder(noting: Recorder) -> Recorder:
    """The upstream, which says "A cup.", whole or streamed."""
    noting.reset()
    noting.says("A ", "cup.", usage=True)
    return noting


@pytest.fixture(scope="module")
def served(there: str, watching: Watching) -> Iterator[Served]:
    with fronting(engines.engine("none").behind(watching), there) as running:
        yield running


@pytest.fixture
def front(served: Served, recorder: Recorder, watching: Watching) -> Served:
    """The guard in front of it, which has seen nothing."""
    watching.reset()
    served.model.output_guard = None
    return served


def post(served: Served, **fields: Any) -> httpx2.Response:
    body = {"model": NAME, "input": [user("What is it?", 1)], **fields}
    return httpx2.post(f"{served.address}/v1/responses", json=body, timeout=30.0, trust_env=False)


def responses(served: Served, **options: Any) -> tuple[Any, Any, list[Any]]:
    """Whole, the last event's, and all events."""
    ask = served.client().responses.create
    given: dict[str, Any] = {"model": NAME, "input": [user("What is it?", 1)], **options}
    plain, events = ask(**given), list(ask(**given, stream=True))
    return plain, events[-1].response, events


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_plain_and_streamed_responses_are_the_upstreams_words(front: Served, recorder: Recorder, finish: str) -> None:
    recorder.says("A ", "cüp.", finish=finish, usage=True)
    plain, last, events = responses(front)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == ["A ", "cüp."]
    for response in (plain, last):
        assert response.output_text == "A cüp." and response.model == NAME and response.id.startswith("resp_")
        assert response.status == ("completed" if finish == "stop" else "incomplete")
        assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (3, 2, 5)
    if finish == "length":
        assert plain.incomplete_details.reason == last.incomplete_details.reason == "max_output_tokens"


def test_the_upstream_is_asked_for_what_the_request_says_and_for_nothing_else(
    front: Served, recorder: Recorder
) -> None:
    plain, last, _ = responses(front)
    asked, streaming = recorder.bodies
    assert set(asked) - {"stream"} == {"model", "messages"} and asked["model"] == THERE and not asked.get("stream")
    assert streaming["stream"] and streaming["stream_options"] == {"include_usage": True}
    assert plain.temperature is plain.top_p is last.temperature is last.top_p is None
    recorder.bodies.clear()
    options = {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "metadata": {"a": "b"}, "user": "somebody"}
    plain, last, _ = responses(front, **options)
    for sent in recorder.bodies:
        assert (sent["temperature"], sent["top_p"], sent["max_completion_tokens"]) == (0.5, 0.9, 7)
        assert not {"metadata", "user", "moderation", "input"} & set(sent)
    for response in (plain, last):
        assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 0.9, 7)


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_alone_reaches_the_upstream_as_it_was_looked_at(
    front: Served, recorder: Recorder, watching: Watching, stream: bool
) -> None:
    clear = engines.image(2).convert("RGBA").resize((900, 700))
    clear.putalpha(90)
    given = uri(clear)
    answer = post(
        front, input=[{"role": "user", "content": [{"type": "input_image", "image_url": given}]}], stream=stream
    )
    assert answer.status_code == 200, answer.text
    (message,) = recorder.bodies[0]["messages"]
    (part,) = message["content"]
    assert part["type"] == "image_url" and part["image_url"]["url"] != given
    assert recorder.images() == watching.seen and len(watching.seen) == 1


def test_every_image_of_every_item_is_looked_at_and_goes_on_in_its_place(
    front: Served, recorder: Recorder, watching: Watching
) -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    items = [user("What is it?", 1, 2), earlier("A <image>."), user("", 3), refused, user("And this?", 4)]
    plain, last, _ = responses(front, input=items, instructions="Be brief.")
    assert plain.output_text == last.output_text == "A cup."
    assert recorder.images() == watching.seen and len(watching.seen) == 8
    assert len(set(watching.seen[:4])) == 4 and watching.seen[:4] == watching.seen[4:]
    for sent in recorder.bodies:
        told = [(message["role"], _form(message["content"])) for message in sent["messages"]]
        assert told == [
            ("system", ["Be brief."]),
            ("user", [None, None, "What is it?"]),
            ("assistant", ["A < image>."]),
            ("user", [None]),
            ("assistant", ["No."]),
            ("user", [None, "And this?"]),
        ]
    assert watching.asked[0].system == "Be brief."


def _form(content: str | list[dict[str, Any]]) -> list[str | None]:
    """Words of parts; None: an image."""
    return [content] if isinstance(content, str) else [part.get("text") for part in content]


ANSWERS = ("text", "length", "refusal")


@pytest.mark.parametrize("answer", ANSWERS)
def test_responses_have_the_form_that_they_have_without_an_upstream(
    there: str, recorder: Recorder, answer: str
) -> None:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"}) if answer == "refusal" else None
    engine = engines.engine("safety-head", says=RISK, **({"policy": policy} if policy else {}))
    recorder.says("there ", "is a cup", finish="length" if answer == "length" else "stop", usage=True)
    moderated = {"moderation": {"model": "any"}}
    tokens = {"max_output_tokens": 4 if answer == "length" else 40, "temperature": 0.5, "top_p": 1.0}
    with fronting(engine, there) as served, serving(engine) as local, engines.answering(engine, "there is a cup</s>"):
        for stream in (False, True):
            told = [_told(post(each, stream=stream, **moderated, **tokens)) for each in (served, local)]
            if answer == "refusal":
                assert _same(told[0]) == _same(told[1])
                assert prompts.refusal(DEFAULT, "illegal") in json.dumps(told[0], ensure_ascii=False)
            else:
                assert _shape(told[0]) == _shape(told[1])
    assert bool(recorder.bodies) == (answer != "refusal")


def _told(answer: httpx2.Response) -> list[Any]:
    """The response, or its events with a run of deltas as one."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("application/json"):
        return [answer.json()]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    return [
        event
        for at, event in enumerate(events)
        if at == 0 or not event["type"].endswith(".delta") or events[at - 1]["type"] != event["type"]
    ]


def _shape(value: Any) -> Any:
    """Names of fields, types of events and parts, and why it is over; not the words."""
    if isinstance(value, dict):
        kept = ("type", "status", "reason", "object", "role")
        return {key: held if key in kept else _shape(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_shape(each) for each in value]
    return None if value is None else "a value"


def _same(value: Any) -> Any:
    """Without what is new with every response."""
    if isinstance(value, dict):
        new = ("id", "item_id", "created_at", "completed_at")
        return {key: _same(held) for key, held in value.items() if key not in new}
    return [_same(each) for each in value] if isinstance(value, list) else value


def test_a_hint_stands_in_the_question_and_the_typed_stream_gives_the_answer(there: str, recorder: Recorder) -> None:
    with fronting(engines.engine("safety-head", says=RISK), there) as served:
        with served.client().responses.stream(model=NAME, input=[user("What is it?", 1)]) as stream:  # type: ignore[list-item]  # items as plain tables
            final = stream.get_final_response()
        assert final.output_text == "A cup." and final.status == "completed"
        assert recorder.bodies[0]["messages"][0]["content"][-1]["text"].endswith(prompts.hint(DEFAULT, *RISK))
        block = {"model": "any", "policy": {"input": {"mode": "block"}}}
        recorder.bodies.clear()
        plain, last, _ = responses(served, moderation=block)
        for response in (plain, last):
            assert response.incomplete_details.reason == "content_filter"
            assert response.output[0].content[0].type == "refusal"
        assert not recorder.bodies


UNSEEN: dict[str, Any] = {
    "an untyped part": {"image_url": uri(engines.image(1))},
    "an image of a chat": {"type": "image_url", "image_url": {"url": uri(engines.image(1))}},
    "an image with a cache key": {**image(1), "uuid": "1"},
    "embeddings": {"type": "image_embeds", "image_embeds": "AAAA"},
    "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "video": {"type": "input_video", "video_url": "data:video/mp4;base64,AAAA"},
    "a file on the disk": {"type": "input_image", "image_url": "file:///etc/passwd"},
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_the_guard_cannot_see_goes_nowhere(front: Served, recorder: Recorder, name: str) -> None:
    for content in ([UNSEEN[name]], [image(1), UNSEEN[name], {"type": "input_text", "text": "a"}]):
        answer = post(front, input=[{"role": "user", "content": content}])
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["param"].startswith("input[0].content[")
    assert not recorder.bodies


TAKEN = ("two questions in a row",)
"""What an upstream may be asked, and the model in this process may not."""


@pytest.mark.parametrize("name", [name for name in WRONG if name not in TAKEN])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_served_is_an_error_that_names_the_field(
    front: Served, recorder: Recorder, name: str, stream: bool
) -> None:
    changed, param = WRONG[name]
    options: dict[str, Any] = {"model": NAME, "input": "What is it?"} | changed
    with pytest.raises(openai.APIStatusError) as caught:
        list(front.client().responses.create(**options, stream=stream))
    assert 400 <= caught.value.status_code < 500
    assert (caught.value.param or "").startswith(param)
    assert not recorder.bodies


def test_an_image_beside_the_instructions_is_an_error_about_an_item(front: Served, recorder: Recorder) -> None:
    items = [{"role": "system", "content": [image(1)]}, user("a")]
    answer = post(front, input=items, instructions="Be brief.")
    assert answer.status_code == 400 and "input[-" not in answer.text
    assert not recorder.bodies


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_an_error(front: Served, recorder: Recorder, name: str) -> None:
    (recorder.answer, status, code), recorder.whole = ODD[name], None
    answer = post(front)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text


CALLS = told_chunk({"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}})
MORE_STREAMS = {
    "half of it, then a call": ([upstreams.chunk("A"), CALLS, END, DONE], 200, "upstream_shape"),
    "half of it, then another answer": (
        [upstreams.chunk("A"), upstreams.chunk("", choices=[{}, {}]), DONE],
        200,
        "upstream_shape",
    ),
}


@pytest.mark.parametrize("name", [*ODD_STREAMS, *MORE_STREAMS])
def test_an_odd_stream_ends_in_an_error_and_is_never_completed(front: Served, recorder: Recorder, name: str) -> None:
    pieces, status, code = (ODD_STREAMS | MORE_STREAMS)[name]
    recorder.answer = (200, EVENTS, pieces)
    answer = post(front, stream=True)
    assert answer.status_code == status and "secret" not in answer.text
    assert "response.completed" not in answer.text and "response.incomplete" not in answer.text
    if status == 200:
        *_, last = _told(answer)
        assert (last["type"], last["code"]) == ("error", code)
        with pytest.raises(openai.APIError):
            list(front.client().responses.create(model=NAME, input="What is it?", stream=True))
    else:
        assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_upstreams_call(front: Served, recorder: Recorder, stream: bool) -> None:
    recorder.answer = (200, EVENTS, [upstreams.chunk("A"), HANGS]) if stream else (200, JSON, [HANGS])
    recorder.whole = None
    client = http.client.HTTPConnection(front.address.removeprefix("http://"))
    body = json.dumps({"model": NAME, "input": "What is it?", "stream": stream})
    client.request("POST", "/v1/responses", body, {"Content-Type": "application/json"})
    assert waited(lambda: bool(recorder.bodies))
    if stream:
        assert client.getresponse().read(7) == b"event: "
    client.close()
    assert waited(lambda: recorder.has_left)
    assert waited(lambda: front.model.in_flight == 0)  # type: ignore[attr-defined]  # a front


@pytest.mark.parametrize("stream", [False, True])
def test_a_guard_of_answers_lets_out_nothing_that_it_flags(front: Served, recorder: Recorder, stream: bool) -> None:
    recorder.says("A ", f"{BAD} cup", usage=True)
    front.model.output_guard = OutputGuard("scripted", Scripted(), seconds=5.0)
    answer = post(front, stream=stream, moderation={"model": "any", "policy": {"output": {"mode": "block"}}})
    assert answer.status_code == 200 and BAD not in json.dumps(_told(answer)[-1].get("response", {}).get("output", []))
    assert f"{BAD} cup" not in answer.text and "content_filter" in answer.text


def test_events_come_in_their_order_with_their_numbers(front: Served) -> None:
    *_, events = responses(front)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds(events) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
