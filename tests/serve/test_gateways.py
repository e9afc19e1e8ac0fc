"""What LiteLLM's proxy posts to the guard, in its own shapes: no image is missed, and none counts twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from safevlm.defenses import Policy
from safevlm.engine import Engine
from safevlm.serve.gateways import PATH
from safevlm.serve.output_guard import AnswerVerdict, OutputGuard
from safevlm.taxonomy import DEFAULT
from tests.engine import engines
from tests.serve.serving import Served, serving, uri
from tests.serve.test_broken_guard import Moody
from tests.serve.upstreams import Watching, fronting, pixels

RISK = ("must_refuse", "illegal")
ONE, TWO = uri(engines.image(1)), uri(engines.image(2))
TEXT = "What is it?"


def part(url: str, kind: str = "image_url", is_string: bool = False) -> dict[str, Any]:
    return {"type": kind, "image_url": url if is_string else {"url": url}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "A cup."}
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "chat, text and image": (
        {"texts": [TEXT], "images": [ONE], "structured_messages": [user(TEXT, part(ONE))]},
        1,
    ),
    "chat, image only": ({"texts": [], "images": [ONE], "structured_messages": [user(part(ONE))]}, 1),
    "chat, system text and image": (
        {"texts": ["Be brief."], "images": [ONE], "structured_messages": [SYSTEM, user(part(ONE))]},
        1,
    ),
    "responses, image in the messages alone": (
        {"texts": [TEXT], "images": None, "structured_messages": [user(TEXT, part(ONE))]},
        1,
    ),
    "responses, image as string": (
        {"texts": [TEXT], "images": None, "structured_messages": [user(TEXT, part(ONE, is_string=True))]},
        1,
    ),
    "responses, input_image only": (
        {"texts": [], "structured_messages": [user(part(ONE, "input_image", is_string=True))]},
        1,
    ),
    "no messages": ({"texts": [TEXT], "images": [ONE]}, 1),
    "nothing but an image": ({"images": [ONE]}, 1),
    "images of several turns": (
        {
            "texts": [TEXT, "A cup.", "And?"],
            "images": [ONE, TWO],
            "structured_messages": [user(TEXT, part(ONE)), ASSISTANT, user("And?", part(TWO))],
        },
        2,
    ),
    "an image of an earlier turn": (
        {"texts": [TEXT], "structured_messages": [user(TEXT, part(ONE)), ASSISTANT, user("And?")]},
        1,
    ),
    "a tool's image": (
        {
            "texts": [TEXT],
            "structured_messages": [
                user(TEXT),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": [part(ONE)]},
            ],
        },
        1,
    ),
    "one image in images and another one in the messages": (
        {"texts": [TEXT], "images": [ONE], "structured_messages": [user(TEXT, part(TWO))]},
        2,
    ),
    "an image that a client sends in two turns": (
        {
            "texts": [TEXT],
            "images": [ONE, ONE],
            "structured_messages": [user(TEXT, part(ONE)), ASSISTANT, user(part(ONE))],
        },
        2,
    ),
}
AROUND = {
    "input_type": "request",
    "tools": None,
    "tool_calls": None,
    "model": "any",
    "request_data": {"user_api_key_hash": "abc"},
    "request_headers": {"authorization": "[present]"},
    "litellm_call_id": "1",
    "litellm_trace_id": "1",
    "litellm_version": "1.110.2",
    "additional_provider_specific_params": {},
}


def ask(served: Served, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
    return httpx2.post(served.address + PATH, json=AROUND | body, headers=headers, trust_env=False, timeout=60)


def told(served: Served, **body: Any) -> dict[str, Any]:
    answer = ask(served, **body)
    assert answer.status_code == 200
    return answer.json()


def local(engine: Engine) -> Any:
    return serving(engine)


def in_front(engine: Engine) -> Any:
    """Of an upstream that nobody listens at: a gateway's question never asks it."""
    return fronting(engine, "http://127.0.0.1:9")


@pytest.fixture(scope="module", params=[local, in_front], ids=["local", "front"])
def watched(request: pytest.FixtureRequest) -> Iterator[tuple[Served, Watching]]:
    defense = Watching()
    with request.param(engines.engine("none").behind(defense)) as served:
        yield served, defense


@pytest.fixture(scope="module")
def risky() -> Iterator[Served]:
    refusing = Policy(DEFAULT, {"must_refuse": "refuse"})
    with serving(engines.engine("safety-head", says=RISK, policy=refusing)) as served:
        yield served


@pytest.fixture(scope="module")
def hinting() -> Iterator[Served]:
    with serving(engines.engine("safety-head", says=RISK, policy=Policy(DEFAULT, {"must_refuse": "hint"}))) as served:
        yield served


@pytest.mark.parametrize("shape", SHAPES)
def test_every_image_is_looked_at_once(watched: tuple[Served, Watching], shape: str) -> None:
    served, defense = watched
    defense.reset()
    body, count = SHAPES[shape]
    assert told(served, **body) == {"action": "NONE"}
    assert len(defense.asked) == 1 and len(defense.seen) == count
    assert set(defense.seen) <= {pixels(ONE), pixels(TWO)}
    said = " ".join([*(question for question, _ in defense.asked[0].history), defense.asked[0].text])
    assert all(text in f"{said} {defense.asked[0].system} {ASSISTANT['content']}" for text in body.get("texts") or ())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_risky_image_is_blocked_in_every_shape(risky: Served, shape: str) -> None:
    answer = told(risky, **SHAPES[shape][0])
    assert answer["action"] == "BLOCKED" and answer["blocked_reason"]


@pytest.mark.parametrize(
    ("shape", "hinted"),
    [
        ("chat, text and image", 0),
        ("chat, system text and image", 0),
        ("images of several turns", 2),
        ("no messages", 0),
    ],
)
def test_a_hint_stands_in_the_last_text_of_the_user(hinting: Served, shape: str, hinted: int) -> None:
    texts = SHAPES[shape][0]["texts"]
    answer = told(hinting, **SHAPES[shape][0])
    assert answer["action"] == "GUARDRAIL_INTERVENED" and len(answer["texts"]) == len(texts)
    changed = [index for index, pair in enumerate(zip(texts, answer["texts"], strict=True)) if pair[0] != pair[1]]
    assert changed == [hinted] and texts[hinted] in answer["texts"][hinted]
    assert told(hinting, **SHAPES["chat, image only"][0])["action"] == "BLOCKED"  # no words to hint in


@pytest.mark.parametrize(
    ("messages", "action"),
    [
        ([user(part(ONE), "")], "GUARDRAIL_INTERVENED"),
        ([SYSTEM, user(part(ONE), "")], "GUARDRAIL_INTERVENED"),
        ([user(TEXT), ASSISTANT, user("", part(ONE))], "GUARDRAIL_INTERVENED"),
        ([user(TEXT), user("", part(ONE))], "GUARDRAIL_INTERVENED"),
        ([user(part(ONE))], "BLOCKED"),
        ([user(part(ONE)), {"role": "assistant", "content": ""}], "BLOCKED"),
        ([user(part(ONE), ""), {"role": "assistant", "content": [{"type": "text", "text": ""}]}], "BLOCKED"),
        ([{"role": "system", "content": ""}, user(part(ONE))], "BLOCKED"),
    ],
)
def test_a_hint_stands_in_an_empty_text_of_the_last_question_and_in_no_other(
    hinting: Served, messages: list[dict[str, Any]], action: str
) -> None:
    answer = told(hinting, texts=[""], structured_messages=messages)
    assert answer["action"] == action
    if action != "BLOCKED":
        (said,) = answer["texts"]
        assert said.strip() and TEXT not in said


UNSEEN: dict[str, dict[str, Any]] = {
    "an address": {"texts": [TEXT], "images": ["https://example.org/a.png"]},
    "a file": {"texts": [TEXT], "images": ["file:///etc/passwd"]},
    "a broken image": {"texts": [TEXT], "images": ["data:image/png;base64,AAAA"]},
    "an address in the messages": {"texts": [TEXT], "structured_messages": [user(TEXT, part("https://example.org/a"))]},
    "a file's id": {"texts": [TEXT], "structured_messages": [user(TEXT, {"type": "input_image", "file_id": "1"})]},
    "no address": {"texts": [TEXT], "structured_messages": [user(TEXT, {"type": "image_url"})]},
    "audio": {"texts": [TEXT], "structured_messages": [user(TEXT, {"type": "input_audio", "input_audio": {}})]},
    "a video": {"texts": [TEXT], "structured_messages": [user(TEXT, {"type": "video_url", "video_url": {"url": ONE}})]},
    "a cached image": {"texts": [TEXT], "structured_messages": [user(TEXT, {**part(ONE), "uuid": "1"})]},
    "images beside the content": {"texts": [TEXT], "structured_messages": [{**user(TEXT), "images": ["AAAA"]}]},
    "a plain string among parts": {"structured_messages": [{"role": "user", "content": [ONE]}]},
    "an unknown role": {"structured_messages": [{"role": "narrator", "content": TEXT}]},
    "an unknown field": {"texts": [TEXT], "videos": ["AAAA"]},
    "an image of the assistant's": {"structured_messages": [user(TEXT), {"role": "assistant", "content": [part(ONE)]}]},
    "too many images": {"texts": [TEXT], "images": [uri(engines.image(seed)) for seed in range(20)]},
    "nothing": {},
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_is_blocked_and_asks_no_detector(watched: tuple[Served, Watching], name: str) -> None:
    served, defense = watched
    defense.reset()
    answer = told(served, **UNSEEN[name])
    assert answer["action"] == "BLOCKED" and answer["blocked_reason"] and not defense.asked
    assert "passwd" not in answer["blocked_reason"] and "AAAA" not in answer["blocked_reason"]


@pytest.mark.parametrize("mood", ["raises", "nan", "hangs"])
@pytest.mark.parametrize("place", [local, in_front])
def test_a_broken_detector_blocks(mood: str, place: Callable[[Engine], Any]) -> None:
    defense = Moody()
    defense.mood = mood
    options = {"seconds": 0.3} if mood == "hangs" else {}
    engine = engines.engine("none").behind(defense)
    with serving(engine, **options) if place is local else fronting(engine, "http://127.0.0.1:9", **options) as served:
        answer = told(served, texts=[TEXT], images=[ONE])
        defense.goes_on.set()
        assert answer["action"] == "BLOCKED" and "secret" not in answer["blocked_reason"]
        assert httpx2.get(f"{served.address}/healthz", trust_env=False).status_code == 503


def test_a_server_without_a_guard_blocks() -> None:
    with serving(engines.engine("none")) as served:
        assert told(served, texts=[TEXT])["action"] == "BLOCKED"


def test_the_key_stands_in_the_gateways_own_header() -> None:
    with serving(engines.engine("none").behind(Watching()), keys=("open-sesame",)) as served:
        assert ask(served, texts=[TEXT]).status_code == 401
        assert ask(served, {"x-api-key": "wrong"}, texts=[TEXT]).status_code == 401
        assert ask(served, {"x-api-key": "open-sesame"}, texts=[TEXT]).json() == {"action": "NONE"}


def test_an_answer_is_judged_where_there_is_a_guard_of_answers(watched: tuple[Served, Watching]) -> None:
    served, _ = watched

    async def judge(request: Any, text: str) -> AnswerVerdict:
        if text == "breaks":
            raise OSError("/srv/secret")
        return AnswerVerdict("words", "brax" in text)

    assert told(served, input_type="response", texts=["A brax."]) == {"action": "NONE"}
    served.model.output_guard = OutputGuard("words", judge)
    try:
        assert told(served, input_type="response", texts=["A cup."]) == {"action": "NONE"}
        for text in ("A brax.", "breaks"):
            answer = told(served, input_type="response", texts=["A cup.", text] if text != "breaks" else [text])
            assert answer["action"] == "BLOCKED" and "secret" not in answer["blocked_reason"]
        served.model.output_guard.mode = "score"
        assert told(served, input_type="response", texts=["A brax."]) == {"action": "NONE"}
    finally:
        served.model.output_guard = None
        served.model.health.output = ""


def test_an_image_that_a_model_made_is_looked_at(risky: Served) -> None:
    assert told(risky, input_type="response", texts=["Here."], images=[ONE])["action"] == "BLOCKED"


def test_requests_are_counted_by_what_was_done(risky: Served) -> None:
    count = risky.model.metrics.requests.labels("refused")._value.get()
    told(risky, texts=[TEXT], images=[ONE])
    assert risky.model.metrics.requests.labels("refused")._value.get() == count + 1
