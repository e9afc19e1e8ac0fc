"""What the action for NeMo Guardrails asks the guard, and what it makes of the answer; the package is not needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from socket import socket
from typing import Any

import pytest

from safevlm.defenses import Policy
from safevlm.engine import Engine
from safevlm.files import FileError, checked
from safevlm.serve.nemo import GuardClient, GuardServer, RailVerdict, verdict_of, verdict_on, words_of
from safevlm.taxonomy import DEFAULT
from tests.engine import engines
from tests.serve.serving import Served, listening, serving, uri
from tests.serve.upstreams import HANGS, JSON, Recorder, Watching, pixels

RISK = ("must_refuse", "illegal")
ONE, TWO = uri(engines.image(1)), uri(engines.image(2))
TEXT = "What is it?"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "A cup."}
SAID = {"type": "StartUtteranceBotAction", "script": "A cup."}


def shown(*parts: Any) -> dict[str, Any]:
    """An earlier question in NeMo's own history."""
    return {"type": "UserMessage", "text": list(parts)}


SHAPES: dict[str, tuple[Any, list[Any], Any, int]] = {
    # raw messages, events, question, images
    "words": ([{"role": "user", "content": TEXT}], [], TEXT, 0),
    "an image alone": ([user(image(ONE))], [], [image(ONE)], 1),
    "an image in front of words": ([user(image(ONE), text(TEXT))], [], [image(ONE), text(TEXT)], 1),
    "two images": ([user(image(ONE), text(TEXT), image(TWO))], [], [image(ONE), text(TEXT), image(TWO)], 2),
    "earlier turns": (
        [SYSTEM, user(image(ONE), text(TEXT)), ASSISTANT, user(text("And?"), image(TWO))],
        [shown(image(ONE), text(TEXT)), SAID],
        [text("And?"), image(TWO)],
        2,
    ),
    "an earlier turn alone": (
        [user(image(ONE), text(TEXT)), ASSISTANT, {"role": "user", "content": "And?"}],
        [shown(image(ONE), text(TEXT)), SAID],
        "And?",
        1,
    ),
    "the same words about another image in NeMo's history": (
        [user(image(ONE), text(TEXT)), ASSISTANT, {"role": "user", "content": "And?"}],
        [shown(image(TWO), text(TEXT)), SAID],
        "And?",
        2,
    ),
    "a rail in front changed the question": ([user(image(ONE), text(TEXT))], [], [image(TWO), text("?")], 2),
    "NeMo's events alone": (None, [shown(image(ONE), text(TEXT)), SAID], [text("And?"), image(TWO)], 2),
    "a completion": (TEXT, [], TEXT, 0),
    "NeMo's own messages": (
        [{"role": "context", "content": {"name": "Jo"}}, user(image(ONE), text(TEXT))],
        [{"type": "ContextUpdate", "data": {"name": "Jo"}}],
        [image(ONE), text(TEXT)],
        1,
    ),
    "a tool's image": (
        [user(text(TEXT)), {"role": "tool", "tool_call_id": "1", "content": [image(ONE)]}, user(text("And?"))],
        [],
        [text("And?")],
        1,
    ),
}


def asked(address: str, shape: str, key: str = "", seconds: float = 30.0) -> RailVerdict:
    return said(address, *SHAPES[shape][:3], key=key, seconds=seconds)


def said(address: str, raw: Any, events: list[Any], question: Any, key: str = "", seconds: float = 30.0) -> RailVerdict:
    ask = GuardClient(GuardServer(address, seconds), key).ask
    return asyncio.run(verdict_on(ask, raw, events, question))


@pytest.fixture(scope="module")
def watched() -> Iterator[tuple[Served, Watching]]:
    defense = Watching()
    with serving(engines.engine("none").behind(defense)) as served:
        yield served, defense


def acting(does: str) -> Engine:
    """Every image is risky, and the policy does this."""
    return engines.engine("safety-head", says=RISK, policy=Policy(DEFAULT, {"must_refuse": does}))


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    with serving(acting("refuse")) as served:
        yield served.address


@pytest.fixture(scope="module")
def hinting() -> Iterator[str]:
    with serving(acting("hint")) as served:
        yield served.address


@pytest.mark.parametrize("shape", SHAPES)
def test_every_image_of_every_turn_is_looked_at_once(watched: tuple[Served, Watching], shape: str) -> None:
    served, defense = watched
    defense.reset()
    assert asked(served.address, shape) == RailVerdict("allow")
    assert len(defense.asked) == 1 and len(defense.seen) == SHAPES[shape][3]
    assert set(defense.seen) <= {pixels(ONE), pixels(TWO)}
    assert "\n".join(words_of(SHAPES[shape][2])) in defense.asked[0].text


@pytest.mark.parametrize("shape", [shape for shape, told in SHAPES.items() if told[3]])
def test_a_risky_image_is_blocked_in_every_shape(refusing: str, shape: str) -> None:
    verdict = asked(refusing, shape)
    assert verdict.kind == "block" and verdict.reason


@pytest.mark.parametrize("shape", [shape for shape, told in SHAPES.items() if told[3]])
def test_a_hint_is_added_to_the_question_and_its_images_stay(hinting: str, shape: str) -> None:
    question = SHAPES[shape][2]
    verdict = asked(hinting, shape)
    assert verdict.kind == "transform" and verdict.message != question
    *_, last = words_of(verdict.message)
    assert last and all(words in "\n".join(words_of(verdict.message)) for words in words_of(question))
    if isinstance(question, str):
        assert isinstance(verdict.message, str)
    else:
        assert [part for part in verdict.message if part["type"] != "text"] == [
            part for part in question if part["type"] != "text"
        ]


UNSEEN: dict[str, tuple[Any, list[Any], Any]] = {
    "an address": ([user(image("https://example.org/a.png"))], [], [image("https://example.org/a.png")]),
    "a file": ([user({"type": "file", "file": {"file_id": "1"}})], [], [{"type": "file", "file": {"file_id": "1"}}]),
    "a plain string among parts": ([user(ONE)], [], [ONE]),
    "an unread earlier turn": ([user({"type": "input_audio"}), ASSISTANT, user(text(TEXT))], [], [text(TEXT)]),
    "an unread turn of NeMo's history": ([user(text(TEXT))], [shown({"type": "video_url"})], [text(TEXT)]),
    "a broken image": ([user(image("data:image/png;base64,AAAA"))], [], [image("data:image/png;base64,AAAA")]),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_the_guard_cannot_see_is_blocked(watched: tuple[Served, Watching], name: str) -> None:
    served, defense = watched
    defense.reset()
    assert said(served.address, *UNSEEN[name]).kind == "block" and not defense.asked


NO_QUESTION: dict[str, tuple[Any, list[Any], Any]] = {
    "none": ([], [], None),
    "a number": ([], [], 3),
    "bytes": ([user(b"abc")], [], [b"abc"]),
    "messages that are none": (["abc"], [], TEXT),
    "not a number": ([{"role": "user", "content": TEXT, "x": float("nan")}, user(text(TEXT))], [], [text(TEXT)]),
}


@pytest.mark.parametrize("name", NO_QUESTION)
def test_what_cannot_be_sent_is_blocked(watched: tuple[Served, Watching], name: str) -> None:
    served, defense = watched
    defense.reset()
    assert said(served.address, *NO_QUESTION[name]).kind == "failure" and not defense.asked


ODD: dict[str, Any] = {
    "no such key": (401, JSON, [b"{}"]),
    "an error": (500, JSON, [b"{}"]),
    "busy": (503, JSON, [b"{}"]),
    "a redirect": (307, (b"location", b"/elsewhere"), [b"{}"]),
    "a page": (200, (b"content-type", b"text/html"), [b"<html>"]),
    "another status": (204, JSON, [b'{"action": "NONE"}']),
    "a list": (200, JSON, [b'["NONE"]']),
    "nothing": (200, JSON, [b"{}"]),
    "an unknown action": (200, JSON, [b'{"action": "ALLOW"}']),
    "a hint without words": (200, JSON, [b'{"action": "GUARDRAIL_INTERVENED"}']),
    "a hint in several texts": (200, JSON, [b'{"action": "GUARDRAIL_INTERVENED", "texts": ["a", "b"]}']),
    "a hint that is none": (200, JSON, [b'{"action": "GUARDRAIL_INTERVENED", "texts": [1]}']),
    "no end": (200, JSON, [b'{"action": ', HANGS]),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_blocks(name: str, caplog: pytest.LogCaptureFixture) -> None:
    guard = Recorder(answer=ODD[name])
    with listening(guard) as address:
        assert asked(address, "words", seconds=0.5 if name == "no end" else 30.0).kind == "failure"
    assert len(guard.bodies) == 1 and caplog.records and TEXT not in caplog.text
    assert ODD[name][0] == 200 or f"status {ODD[name][0]}" in caplog.text


def test_a_guard_that_cannot_be_reached_blocks() -> None:
    with closing(socket()) as place:
        place.bind(("127.0.0.1", 0))
        verdict = asked(f"http://127.0.0.1:{place.getsockname()[1]}", "an image alone")
    assert verdict.kind == "failure" and verdict.reason and "127.0.0.1" not in verdict.reason


def test_the_key_is_sent_and_nothing_passes_without_it() -> None:
    with serving(engines.engine("none").behind(Watching()), keys=("open-sesame",)) as served:
        assert asked(served.address, "words", key="open-sesame").kind == "allow"
        assert asked(served.address, "words").kind == "failure"
        assert asked(served.address, "words", key="wrong").kind == "failure"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"action": "NONE"}, "allow"),
        ({"action": "BLOCKED", "blocked_reason": "no"}, "block"),
        ({"action": "BLOCKED", "blocked_reason": None}, "block"),
        ({"action": "GUARDRAIL_INTERVENED", "texts": ["with care"]}, "transform"),
    ],
)
def test_the_guards_answer_is_a_verdict(answer: dict[str, Any], kind: str) -> None:
    assert verdict_of(answer, TEXT).kind == kind
    assert verdict_of(json.loads(json.dumps(answer)), [image(ONE)]).kind == kind


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://a:b@host", "http://host?x=1"])
def test_what_is_no_address_is_told_with_its_place(url: str) -> None:
    with pytest.raises(FileError, match=r"^config.yml: custom_data.safevlm: .*http://127"):
        checked(GuardServer, {"url": url}, "config.yml: custom_data.safevlm")


@pytest.mark.parametrize("held", [None, {}, {"url": "http://host", "key": "x"}, {"url": "http://host", "timeout": 0}])
def test_settings_that_are_not_read_are_errors(held: Any) -> None:
    with pytest.raises(FileError, match="custom_data.safevlm"):
        checked(GuardServer, held, "config.yml: custom_data.safevlm")
