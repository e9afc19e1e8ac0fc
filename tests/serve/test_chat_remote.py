"""`safevlm chat --server`: the same conversation with a real server of ours, and with servers that know less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from safevlm.__main__ import main
from safevlm.commands import FINDING, OK
from safevlm.data.images import open_image
from safevlm.defenses import Policy
from safevlm.serve.console.local_model import LocalModel
from safevlm.serve.console.partners import Sampling
from safevlm.serve.console.remote_model import RemoteModel
from safevlm.taxonomy import DEFAULT
from tests.engine import engines
from tests.serve.serving import NAME, Served, listening, serving
from tests.serve.talking import Talk, typing

RISK = ("must_refuse", "illegal")
QUESTION = "What is in the picture?"
SHORT = Sampling(max_new_tokens=6)
KEY = "the-key-of-the-test"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engines.engine("safety-head", says=RISK)) as running:
        yield running


@pytest.fixture(scope="module")
def refusing() -> Iterator[Served]:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    with serving(engines.engine("safety-head", says=RISK, policy=policy), keys=(KEY,)) as running:
        yield running


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    typed = typing(monkeypatch, capsys)
    return lambda partner, lines, images=(): typed(partner, lines, images, SHORT)


@pytest.fixture
def image(tmp_path: Path) -> str:
    file = tmp_path / "scene.png"
    engines.image().save(file)
    return str(file)


def test_a_conversation_with_a_server_is_the_one_with_its_model(
    served: Served, talk: Talk, image: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    engines.image(1).save(other)
    lines = ["Hello", f"/image {image}", QUESTION, f"/image {other}", "And now?", "/reset", "And?"]
    there = talk(RemoteModel.connect(served.address), lines)
    assert there == talk(LocalModel(served.model.engine), lines)


def test_why_tells_the_servers_verdict_and_what_nobody_looked_at(served: Served, talk: Talk, image: str) -> None:
    out = talk(RemoteModel.connect(served.address), [QUESTION, "/why", f"/image {image}", QUESTION, "/why"])
    assert out[1].startswith("not looked: server did not look")
    assert "verdict: level must_refuse, category illegal (by server)" in out[4]
    assert "category: illegal 1.00" in out[4]
    assert "the answer was not looked at" in out[4]


def test_a_refusal_of_the_server_is_told_and_kept(refusing: Served, talk: Talk, image: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    out = talk(RemoteModel.connect(refusing.address, KEY), [QUESTION, "/why", f"/save {file}"], [image])
    assert "illegal content" in out[0] and "refused by the server's guard" in out[1]
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["messages"][-1] == {"role": "assistant", "content": out[0].strip()}
    assert saved["answers"][0]["refused_by"] == "server"
    assert saved["answers"][0]["verdict"]["level"] == "must_refuse"
    assert KEY not in file.read_text(encoding="utf-8")


def test_json_of_one_question_has_the_fields_of_a_local_one(
    refusing: Served, image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFEVLM_API_KEY", KEY)
    words = ["chat", "--server", refusing.address, "--image", image, "--ask", QUESTION]
    assert main([*words, "--json"]) == OK
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["reply", "refused_by", "verdict", "prompt", "seconds", "trace"]
    assert (told["refused_by"], told["verdict"]["category"]) == ("server", "illegal")
    assert main(words) == OK
    assert capsys.readouterr().out == f"{told['reply']}\n"


def test_what_the_server_decides_is_one_line_and_the_conversation_goes_on(served: Served, talk: Talk) -> None:
    lines = [QUESTION, "/compare", "/defense none", "/policy", "a \ud83d", "And?", "/help"]
    out = talk(RemoteModel.connect(served.address), lines)
    assert all(told.splitlines()[-1].startswith("error: ") for told in out[1:5]), out[1:5]
    assert all("decides itself" in told for told in out[1:4])
    assert "ud83d" in out[4]
    assert out[5].strip() and not out[5].startswith("error")


def test_a_server_that_refuses_the_question_says_why_and_the_conversation_goes_on(
    served: Served, talk: Talk, image: str
) -> None:
    out = talk(
        RemoteModel.connect(served.address), ["Hello", "/image " + " ".join([image] * 17), QUESTION, "/image", "And?"]
    )
    assert out[2].startswith("error: ") and "17 images" in out[2] and out[2].count("\n") == 1
    assert out[4].strip() and not out[4].startswith("error")


@pytest.mark.parametrize("key", ["", "wrong-key-of-the-test"])
def test_a_wrong_key_is_one_line_that_does_not_repeat_it(
    refusing: Served, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", "--server", refusing.address, "--ask", "Hello"]
    assert main([*words, *(["--api-key", key] if key else [])]) == FINDING
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "SAFEVLM_API_KEY" in said.err and not said.out
    assert not key or key not in said.err


def test_nobody_there_is_one_line_with_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--server", "http://127.0.0.1:9", "--ask", "Hello"]) == FINDING
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "http://127.0.0.1:9/v1" in said


def test_another_name_of_a_model_is_told_by_the_server(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--server", f"{served.address}/v1/", "--model", "other", "--ask", "Hello"]) == FINDING
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'other'" in said and NAME in said


# --- servers that are not ours ----------------------------------------------------------------------------------------


def _chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    told = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices, **more}
    return f"data: {json.dumps(told)}\n\n"


END = (_chunk({}, "stop"), "data: [DONE]\n\n")


@contextmanager
def foreign(*chunks: str, knows: bool = False, lists: bool = True) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that sends these chunks; its address, and the bodies that it took. `knows`: the field `moderation`;
    `lists`: its models."""
    app, bodies = FastAPI(), list[dict[str, Any]]()

    @app.post("/v1/chat/completions", response_model=None)
    async def answer(request: Request) -> JSONResponse | StreamingResponse:
        body = await request.json()
        if "moderation" in body and not knows:
            return JSONResponse({"error": {"message": "extra fields are not permitted"}}, 422)
        bodies.append(body)
        return StreamingResponse(iter(chunks), media_type="text/event-stream")

    if lists:

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]}

    with listening(app) as address:
        yield address, bodies


def test_a_server_without_moderation_is_asked_without_it_and_nothing_is_claimed(talk: Talk, image: str) -> None:
    with foreign(_chunk({"content": "A cup."}), *END) as (address, bodies):
        partner = RemoteModel.connect(address)
        assert talk(partner, [QUESTION, "/why", "And?"], [image])[::2] == ["A cup.\n", "A cup.\n"]
        told = talk(partner, [QUESTION, "/why"])[1]
    assert told.startswith("not told:") and "safe" not in told and "level" not in told
    first, second, _ = bodies
    assert set(first) == {"model", "messages", "stream", "max_tokens"}, "what the user did not ask for is sent"
    parts = first["messages"][0]["content"]
    assert open_image(parts[0]["image_url"]["url"]).tobytes() == open_image(image).tobytes()
    assert parts[1] == {"type": "text", "text": QUESTION}
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "And?"},
    ]


def test_an_answer_that_breaks_off_is_an_error_and_no_turn(talk: Talk) -> None:
    with foreign(_chunk({"content": "Take the"}), knows=True) as (address, bodies):
        out = talk(RemoteModel.connect(address), [QUESTION, "And?", "/save talk.json"])
    assert all(told.startswith("Take the\nerror: ") and "broke off" in told for told in out[:2])
    assert [len(body["messages"]) for body in bodies] == [1, 1], "half an answer is told as a whole one"
    assert out[2].startswith("error: nothing was said yet")


@pytest.mark.parametrize(
    "chunk",
    ["data: no json\n\n", "data: [1]\n\n", 'data: {"error": {"message": "it broke"}}\n\n', _chunk({"content": 7})],
)
def test_what_is_no_answer_is_one_line_and_the_conversation_goes_on(talk: Talk, chunk: str) -> None:
    with foreign(chunk, *END, knows=True) as (address, _):
        out = talk(RemoteModel.connect(address), [QUESTION, "/why"])
    assert out[0].startswith("error: ") and out[0].count("\n") == 1
    assert out[1] == "nothing was asked yet\n"


@pytest.mark.parametrize(
    ("moderation", "told"),
    [
        ({"input": {"type": "error", "code": "x", "message": "it broke"}}, "no verdict: the guard failed"),
        (
            {"input": {"results": [{"flagged": False}, {"flagged": True, "categories": {"hate": True}}]}},
            "verdict: level flagged, category hate",
        ),
        ({"input": {"results": [{"flagged": False, "category_scores": {"hate": "?"}}]}}, "verdict: level safe"),
        ({"input": None, "output": {"results": [{"flagged": True, "categories": {"hate": True}}]}}, "category hate"),
        ({"input": "?", "output": 7}, "not told"),
        ({"input": {"results": "?"}}, "not told"),
    ],
)
def test_moderation_in_any_form_is_read_or_said_to_be_untold(talk: Talk, moderation: Any, told: str) -> None:
    told_last = _chunk({}, None, moderation=moderation)
    with foreign(_chunk({"content": "Yes."}), _chunk({}, "stop"), told_last, END[1], knows=True) as (address, _):
        out = talk(RemoteModel.connect(address), [QUESTION, "/why"])
    assert out[0] == "Yes.\n" and told in out[1], out


def test_a_server_that_lists_no_models_needs_a_name(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    with foreign(_chunk({"content": "Yes."}), *END, lists=False) as (address, bodies):
        assert main(["chat", "--server", address, "--ask", "Hello"]) == FINDING
        assert "--model" in capsys.readouterr().err
        assert talk(RemoteModel.connect(address, name="m"), ["Hello"]) == ["Yes.\n"]
    assert bodies[0]["model"] == "m"
