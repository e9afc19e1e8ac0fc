"""The folder examples/nemo in the real NeMo Guardrails: what it lets through, and what NeMo asks no rail about."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socket import socket
from typing import Any

import httpx2
import pytest

from safevlm.defenses import Policy
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from tests.engine import engines
from tests.serve.serving import NAME, listening, serving, uri
from tests.serve.upstreams import THERE, Recorder, Watching, fronting, pixels

pytest.importorskip(
    "nemoguardrails.actions.rail_outcome",
    reason="needs NeMo Guardrails, which brings another Hub than requirements.txt: pip install 'safevlm[nemo]'",
)
pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "nemo"
MODEL, GUARD = "base_url: http://127.0.0.1:8000/v1", "  url: http://127.0.0.1:8000"
"""The addresses in the example: one guard, which the rail asks and which stands in front of the model."""
NOBODY = "http://127.0.0.1:9"
KEY = "open-sesame"
TEXT = "What is it?"
ONE, TWO = uri(engines.image(1)), uri(engines.image(2))
IMAGE = {"type": "image_url", "image_url": {"url": ONE}}
OTHER = {"type": "image_url", "image_url": {"url": TWO}}
WORDS = {"type": "text", "text": TEXT}
ASSISTANT = {"role": "assistant", "content": "A cup."}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "4"},
]
REFUSAL = "I'm sorry, I can't respond to that."


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


RISKY: dict[str, list[dict[str, Any]]] = {
    "image and words": [user(IMAGE, WORDS)],
    "image alone": [user(IMAGE)],
    "two images": [user(OTHER, WORDS, IMAGE)],
    "an earlier turn": [user(IMAGE, WORDS), ASSISTANT, {"role": "user", "content": "And?"}],
    "a later turn": [user(OTHER), ASSISTANT, user(IMAGE)],
    "behind a system's words": [{"role": "system", "content": "Be brief."}, user(IMAGE)],
}


def folder(place: Path, guard: str = NOBODY, model: str = NOBODY, name: str = THERE) -> Path:
    """The example with other addresses, and the model's name there. With a `model` of its own the rail stands alone."""
    shutil.copytree(EXAMPLE, place / "config")
    file = place / "config" / "config.yml"
    text = file.read_text(encoding="utf-8")
    assert MODEL in text and GUARD in text
    text = text.replace(MODEL, f"base_url: {model}/v1").replace(GUARD, f"  url: {guard}")
    text = text.replace(f"model: {THERE}", f"model: {name}")
    file.write_text(text, encoding="utf-8")
    return place / "config"


def loaded(place: Path) -> Any:
    from nemoguardrails import LLMRails, RailsConfig

    return LLMRails(RailsConfig.from_path(str(place)))


@contextmanager
def railed(engine: Engine, place: Path) -> Iterator[tuple[Any, Recorder]]:
    """NeMo in front of a model that notes what it gets."""
    recorder = Recorder()
    with listening(recorder) as there, serving(engine, keys=(KEY,)) as guard:
        yield loaded(folder(place, guard.address, there)), recorder


def acting(does: str) -> Engine:
    """Every image is risky, and the policy does this."""
    policy = Policy(DEFAULT, {"must_refuse": does})
    return engines.engine("safety-head", says=("must_refuse", "illegal"), policy=policy)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEVLM_API_KEY", KEY)


def answer(rails: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    return rails.generate(messages=messages, **options)


def streamed(rails: Any, messages: list[dict[str, Any]]) -> str:
    async def whole() -> str:
        return "".join([piece async for piece in rails.stream_async(messages=messages)])

    return asyncio.run(whole())


def test_every_image_is_looked_at_and_the_model_is_asked_as_the_client_did(tmp_path: Path) -> None:
    defense = Watching()
    with railed(engines.engine("none").behind(defense), tmp_path) as (rails, model):
        for messages in RISKY.values():
            defense.reset()
            model.reset()
            rails.events_history_cache.clear()  # of the conversations before, which have the same words
            assert answer(rails, messages) == ASSISTANT
            assert len(model.bodies) == 1 and model.bodies[0]["messages"] == messages
            assert sorted(defense.seen) == sorted(model.images()) and len(defense.asked) == 1


def test_a_risky_image_reaches_no_model(tmp_path: Path) -> None:
    with railed(acting("refuse"), tmp_path) as (rails, model):
        for messages in RISKY.values():
            assert answer(rails, messages) == {"role": "assistant", "content": REFUSAL}
            assert streamed(rails, messages) == REFUSAL
        assert not model.bodies
        assert answer(rails, [{"role": "user", "content": TEXT}]) == ASSISTANT
        assert len(model.bodies) == 1


def test_the_wrapper_that_chooses_an_engine_keeps_the_rail(tmp_path: Path) -> None:
    from nemoguardrails import Guardrails, RailsConfig

    recorder = Recorder()
    with listening(recorder) as there, serving(acting("refuse"), keys=(KEY,)) as guard:
        rails = Guardrails(RailsConfig.from_path(str(folder(tmp_path, guard.address, there))))
        assert answer(rails, RISKY["image alone"])["content"] == REFUSAL and not recorder.bodies


def test_the_check_alone_tells_a_risky_image(tmp_path: Path) -> None:
    with railed(acting("refuse"), tmp_path) as (rails, model):
        for messages in RISKY.values():
            told = rails.check([message for message in messages if message["role"] != "assistant"])
            assert told.status.value == "blocked" and told.rail == "check input with safevlm"
        assert rails.check([{"role": "user", "content": TEXT}]).status.value == "passed"
        assert not model.bodies


def test_the_model_is_asked_in_the_words_with_the_hint_and_sees_the_images(tmp_path: Path) -> None:
    with railed(acting("hint"), tmp_path) as (rails, model):
        for name, messages in RISKY.items():
            model.reset()
            before = [part for message in messages for part in message["content"] if isinstance(part, dict)]
            assert answer(rails, [dict(message) for message in messages]) == ASSISTANT
            (body,) = model.bodies
            last = body["messages"][-1]["content"]
            said = last if isinstance(last, str) else " ".join(part["text"] for part in last if part["type"] == "text")
            plain = messages[-1]["content"]
            words = plain if isinstance(plain, str) else " ".join(part.get("text", "") for part in plain)
            assert len(said.strip()) > len(words.strip()) and words.strip() in said, name
            urls = [part["image_url"]["url"] for part in before if part["type"] == "image_url"]
            assert model.images() == [pixels(url) for url in urls], name


def test_the_same_words_about_another_image_are_looked_at_with_both(tmp_path: Path) -> None:
    """NeMo finds a conversation's history by its words."""
    defense = Watching()
    with railed(engines.engine("none").behind(defense), tmp_path) as (rails, _):
        answer(rails, [user(OTHER, WORDS)])
        defense.reset()
        answer(rails, [user(IMAGE, WORDS), ASSISTANT, {"role": "user", "content": "And?"}])
        assert set(defense.seen) == {pixels(ONE), pixels(TWO)}


def test_without_a_guard_nothing_reaches_the_model(tmp_path: Path) -> None:
    recorder = Recorder()
    with listening(recorder) as there, closing(socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        rails = loaded(folder(tmp_path, f"http://127.0.0.1:{nobody.getsockname()[1]}", there))
        for messages in RISKY.values():
            assert answer(rails, messages)["content"] == REFUSAL
        assert answer(rails, [{"role": "user", "content": TEXT}])["content"] == REFUSAL
        assert not recorder.bodies


def test_an_outcome_tells_a_verdict_from_a_failure(tmp_path: Path) -> None:
    from nemoguardrails.actions.rail_outcome import RailOutcome

    with railed(acting("refuse"), tmp_path) as (rails, _):
        check = rails.runtime.action_dispatcher.get_action("safevlm_check_input")
        passed = asyncio.run(check(context={"user_message": TEXT}, events=[]))
        risky = asyncio.run(check(context={"user_message": [IMAGE]}, events=[]))
        broken = asyncio.run(check(context={}, events=[]))
    assert all(isinstance(outcome, RailOutcome) for outcome in (passed, risky, broken))
    assert (passed.is_blocked, risky.is_blocked, broken.is_blocked) == (False, True, True)
    assert not risky.failed and risky.reason and broken.failed


@pytest.mark.parametrize("settings", ["", "custom_data:\n  safevlm:\n    url: nowhere\n"])
def test_a_folder_without_an_address_does_not_load(tmp_path: Path, settings: str) -> None:
    place = folder(tmp_path)
    file = place / "config.yml"
    file.write_text(file.read_text(encoding="utf-8").partition("custom_data:")[0] + settings, encoding="utf-8")
    with pytest.raises(RuntimeError) as told:
        loaded(place)
    assert "custom_data.safevlm" in str(told.value.__cause__)


UNSEEN: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "input rails switched off": ([user(IMAGE, WORDS)], {"options": {"rails": {"input": False}}}),
    "an assistant's message last": ([user(IMAGE, WORDS), {"role": "assistant", "content": "It is"}], {}),
    "a system's message last": ([user(IMAGE, WORDS), {"role": "system", "content": "Be brief."}], {}),
    "a tool's message last": ([user(IMAGE, WORDS), *CALLED], {}),
    "a tool called earlier": ([user(IMAGE, WORDS), *CALLED, ASSISTANT, {"role": "user", "content": "And?"}], {}),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_nemo_asks_no_input_rail_about(tmp_path: Path, name: str) -> None:
    """NeMo's holes, which the documentation tells: the model is shown an image that no rail was asked about."""
    messages, options = UNSEEN[name]
    with railed(acting("refuse"), tmp_path) as (rails, model):
        answer(rails, messages, **options)
        assert len(model.bodies) == 1 and set(model.images()) == {pixels(ONE)}


@pytest.mark.parametrize("name", UNSEEN)
def test_the_example_asks_the_model_through_the_guard_and_has_none_of_these_holes(tmp_path: Path, name: str) -> None:
    from nemoguardrails.exceptions import LLMCallException

    messages, options = UNSEEN[name]
    recorder = Recorder()
    with listening(recorder) as there, fronting(acting("refuse"), there) as front:
        rails = loaded(folder(tmp_path, front.address, front.address, NAME))
        with suppress(LLMCallException):  # an order of messages that the guard does not take
            answer(rails, messages, **options)
        assert not recorder.bodies


def test_rail_and_guard_in_front_add_one_hint(tmp_path: Path) -> None:
    recorder = Recorder()
    with listening(recorder) as there, fronting(acting("hint"), there) as front:
        rails = loaded(folder(tmp_path, front.address, front.address, NAME))
        for messages in RISKY.values():
            recorder.reset()
            assert answer(rails, [dict(message) for message in messages]) == ASSISTANT
            (body,) = recorder.bodies
            last = body["messages"][-1]["content"]
            said = last if isinstance(last, str) else "\n".join(part.get("text", "") for part in last)
            assert said.count("Note: the image") == 1


def test_nemos_own_server_blocks_a_risky_image(tmp_path: Path) -> None:
    api = pytest.importorskip("nemoguardrails.server.api", reason="pip install 'nemoguardrails[server]'")
    recorder = Recorder()
    with listening(recorder) as there, serving(acting("refuse"), keys=(KEY,)) as guard:
        place = folder(tmp_path, guard.address, there)
        api.app.rails_config_path = str(place)
        with listening(api.app) as address:

            def asked(messages: list[dict[str, Any]], **guardrails: Any) -> Any:
                body = {"model": "stock", "messages": messages, "guardrails": {"config_id": "config", **guardrails}}
                return httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=60, trust_env=False)

            for messages in RISKY.values():
                told = asked(messages)
                assert told.status_code == 200, told.text
                assert told.json()["choices"][0]["message"]["content"] == REFUSAL
            assert not recorder.bodies
            assert asked([{"role": "user", "content": TEXT}]).json()["choices"][0]["message"]["content"] == "A cup."
            recorder.reset()
            asked([user(IMAGE)], options={"rails": {"input": False}})
            assert len(recorder.bodies) == 1  # a client may switch rails off, which the documentation tells
