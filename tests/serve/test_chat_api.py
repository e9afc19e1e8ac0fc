"""OpenAI's own client in front of a guarded model: the same answers as the engine's, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from safevlm.defenses import Policy, prompts
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Request
from tests.engine import engines
from tests.serve.serving import NAME, Served, asked, image_part, serving

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


CONVERSATIONS = {
    "words": ([asked("What is it?")], Request("What is it?")),
    "an image": ([asked("What is it?", engines.image(1))], Request("What is it?", (engines.image(1),))),
    "two images": (
        [asked("What is it?", engines.image(1), engines.image(2))],
        Request("What is it?", (engines.image(1), engines.image(2))),
    ),
    "an image alone": ([asked("", engines.image(1))], Request("", (engines.image(1),))),
    "several turns": (
        [
            {"role": "system", "content": "Be brief."},
            asked("What is it?", engines.image(1)),
            {"role": "assistant", "content": "A cup.", "refusal": None},
            asked("And this?", engines.image(2)),
        ],
        Request(
            "And this?",
            (engines.image(1), engines.image(2)),
            history=(("What is it?", "A cup."),),
            system="Be brief.",
            images_per_turn=(1, 1),
        ),
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_plain_and_streamed_answers_are_the_engines_own(served: Served, engine: Engine, name: str) -> None:
    messages, request = CONVERSATIONS[name]
    expected = engine.reply(request, Generation(TOKENS))
    ask = served.client().chat.completions
    plain = ask.create(model=NAME, messages=messages, max_tokens=TOKENS)
    pieces = list(ask.create(model=NAME, messages=messages, max_completion_tokens=TOKENS, stream=True))
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert plain.choices[0].message.content == streamed == expected.text
    assert plain.choices[0].finish_reason == pieces[-1].choices[0].finish_reason == expected.ended
    assert plain.usage is not None and plain.usage.completion_tokens == expected.answer_tokens
    assert plain.usage.prompt_tokens == expected.prompt_tokens


def test_a_refused_request_is_filtered_content_with_a_refusal(refusing: Served) -> None:
    ask = refusing.client().chat.completions
    refusal = prompts.refusal(DEFAULT, "illegal")
    messages = [asked("What is it?", engines.image(1))]
    plain = ask.create(model=NAME, messages=messages, extra_body={"moderation": {"model": "any"}})
    assert plain.choices[0].finish_reason == "content_filter"
    assert (plain.choices[0].message.content, plain.choices[0].message.refusal) == (None, refusal)
    result = plain.moderation.input.results[0]
    assert result.flagged and result.categories["illegal"] and result.category_scores["illegal"] > 0.9
    pieces = list(ask.create(model=NAME, messages=messages, stream=True))
    assert "".join(piece.choices[0].delta.refusal or "" for piece in pieces) == refusal
    assert not any(piece.choices[0].delta.content for piece in pieces)
    assert pieces[-1].choices[0].finish_reason == "content_filter"


def test_a_request_can_ask_for_more_than_the_policy_and_never_for_less(served: Served, refusing: Served) -> None:
    messages = [asked("What is it?", engines.image(1))]

    def finish(server: Served, mode: str) -> str | None:
        moderation = {"model": "any", "policy": {"input": {"mode": mode}}}
        done = server.client().chat.completions.create(
            model=NAME, messages=messages, max_tokens=4, extra_body={"moderation": moderation}
        )
        assert done.moderation.input.results[0].flagged
        return done.choices[0].finish_reason

    assert (finish(served, "score"), finish(served, "block")) == ("length", "content_filter")
    assert finish(refusing, "score") == "content_filter"


def test_stop_texts_and_usage_arrive_in_a_stream(served: Served) -> None:
    messages = [asked("What is it?", engines.image(1))]
    ask = served.client().chat.completions
    whole = ask.create(model=NAME, messages=messages, max_tokens=TOKENS).choices[0].message.content
    assert whole
    stop = whole[len(whole) // 2 :][:3]
    options = {"model": NAME, "messages": messages, "max_tokens": TOKENS, "stop": [stop]}
    plain = ask.create(**options).choices[0]
    pieces = list(ask.create(**options, stream=True, stream_options={"include_usage": True}))
    assert plain.message.content == whole[: whole.index(stop)].strip() and plain.finish_reason == "stop"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == plain.message.content
    assert pieces[-1].usage is not None and not pieces[-1].choices


def test_the_same_seed_draws_the_same_answer_and_none_draws_anew(served: Served) -> None:
    def drawn(**options: object) -> str | None:
        ask = served.client().chat.completions
        messages = [asked("What is it?")]
        done = ask.create(model=NAME, messages=messages, temperature=1.5, max_tokens=20, **options)
        return done.choices[0].message.content

    assert drawn(seed=5) == drawn(seed=5)
    assert len({drawn() for _ in range(4)}) > 1


BROKEN = "data:image/png;base64,iVBORw0KGgo="
WRONG: dict[str, tuple[dict[str, object], str]] = {
    "another model": ({"model": "gpt-9"}, "model"),
    "no message": ({"messages": []}, "messages"),
    "two answers": ({"n": 2}, ""),
    "tools": ({"extra_body": {"tools": [{"type": "function", "function": {"name": "f"}}]}}, ""),
    "an unknown field": ({"extra_body": {"guard": "off"}}, "guard"),
    "an image on the network": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.y/z.png"}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    "a broken image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": BROKEN}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    "a cached image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": None, "uuid": "1"}]}]},
        "messages[0].content",
    ),
    "embeddings": ({"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "AAAA"}]}]}, ""),
    "audio": ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, ""),
    "two questions in a row": ({"messages": [asked("a"), asked("b")]}, "messages"),
    "an empty stop": ({"stop": [""]}, "stop"),
    "a cold temperature": ({"temperature": -1}, "temperature"),
    "a prompt without end": ({"messages": [asked("what " * 600)]}, ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_served_is_an_error_that_names_the_field(served: Served, name: str) -> None:
    changed, param = WRONG[name]
    options: dict[str, object] = {"model": NAME, "messages": [asked("What is it?")], "max_tokens": 4} | changed
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            list(served.client().chat.completions.create(**options, stream=stream))
        assert 400 <= caught.value.status_code < 500
        assert not param or (caught.value.param or "").startswith(param)


def test_too_many_images_and_bytes_are_refused_before_they_are_decoded() -> None:
    with serving(engines.engine("none"), images=1, body_bytes=40_000, pixels=90_000) as served:
        ask = served.client().chat.completions.create
        with pytest.raises(openai.BadRequestError, match="images"):
            ask(model=NAME, messages=[asked("a", engines.image(1), engines.image(2))])
        with pytest.raises(openai.APIStatusError) as caught:
            ask(model=NAME, messages=[asked("a" * 50_000)])
        assert caught.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="pixels"):
            ask(model=NAME, messages=[asked("a", engines.image(1).resize((301, 300)))])


def test_only_a_known_key_is_let_in_and_health_needs_none() -> None:
    with serving(engines.engine("none"), keys=("first", "second")) as served:
        for key in ("first", "second"):
            assert served.client(api_key=key).models.list().data[0].id == NAME
        for key in ("third", "firs", "first2"):
            with pytest.raises(openai.AuthenticationError):
                served.client(api_key=key).models.list()
        assert served.client(api_key="third")._client.get(f"{served.address}/healthz").status_code == 200


@pytest.mark.parametrize(("header", "status"), [({"Host": "evil.example"}, 403), ({"Content-Type": "text/plain"}, 415)])
def test_a_page_of_somebody_else_cannot_post_to_a_local_server(
    served: Served, header: dict[str, str], status: int
) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "What is it?"}]}'
    headers = {"Content-Type": "application/json"} | header
    answer = served.client()._client.post(f"{served.address}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == status


def test_a_whole_and_a_streamed_answer_are_counted_as_let_through_once_each() -> None:
    with serving(engines.engine("none")) as served:
        ask = served.client().chat.completions
        ask.create(model=NAME, messages=[asked("What is it?")], max_tokens=2)
        list(ask.create(model=NAME, messages=[asked("What is it?")], max_tokens=2, stream=True))
        page = served.client()._client.get(f"{served.address}/metrics").text
        counted = [line for line in page.splitlines() if line.startswith("safevlm:requests_total")]
        assert counted == ['safevlm:requests_total{action="passed"} 2.0']


def test_metrics_count_what_came_of_requests(refusing: Served) -> None:
    client = refusing.client()
    client.chat.completions.create(model=NAME, messages=[asked("What is it?", engines.image(1))])
    page = client._client.get(f"{refusing.address}/metrics").text
    assert 'safevlm:requests_total{action="refused"}' in page
    assert 'category="illegal"' in page and "What is it?" not in page
    assert image_part(engines.image(1))["image_url"]["url"][:40] not in page
