"""A model behind a server as the one that is asked: rows as from the engine, and a failed call is no answer."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.defenses import prompts
from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.runs import served
from safevlm.evaluation.runs.ask import ask, missing, read_failed
from safevlm.evaluation.runs.files import read_replies
from safevlm.types import Generation, Request
from tests.evaluation.command import main
from tests.evaluation.world_of_runs import write_suite

ROOT = Path(__file__).parents[2]
NAME = "small"

Say = Callable[[dict[str, Any]], "str | int | None"]
"""A request's body → what the model says, an HTTP error code, or None: withheld by a filter."""


@dataclass
class Host:
    """A server on this machine, and what it was sent."""

    say: Say
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def model(self) -> str:
        return f"{self.url}#{NAME}"

    def answer(self, body: dict[str, Any]) -> str | int | None:
        with self.lock:
            self.bodies.append(body)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            return self.say(body)
        finally:
            with self.lock:
                self.under_way -= 1


def handler(host: Host) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send(200, {"object": "list", "data": [{"id": NAME, "object": "model", "created": 0, "owned_by": ""}]})

        def do_POST(self) -> None:  # noqa: N802
            said = host.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if isinstance(said, int):
                self.send(said, {"error": {"message": "out of order"}})
                return
            choice = {
                "index": 0,
                "finish_reason": "content_filter" if said is None else "stop",
                "message": {"role": "assistant", "content": said},
            }
            self.send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": NAME, "choices": [choice]})

        def send(self, code: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("x-should-retry", "false")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def serve() -> Iterator[Callable[[Say], Host]]:
    servers = []

    def start(say: Say) -> Host:
        host = Host(say)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(host))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        host.url = f"http://127.0.0.1:{server.server_port}/v1"
        return host

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data")


def text_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def test_every_request_is_asked_once_greedily_with_its_image(
    serve: Callable[[Say], Host], data: Path, tmp_path: Path
) -> None:
    meeting, arrived = threading.Barrier(2), iter([True, True])

    def say(body: dict[str, Any]) -> str:
        if next(arrived, False):
            meeting.wait(20)  # the first two calls must be under way together
        return f" I heard: {text_of(body)} "

    host = serve(say)
    assert ask("miniature", data, host.model, "none", tmp_path / "out", batch_size=4, max_new_tokens=9) == 18
    rows = read_replies(tmp_path / "out")
    assert [row["id"] for row in rows][:2] == ["harmful_seen-0", "harmful_seen-1"]
    assert all(row["reply"] == f"I heard: {row['request']['text']}" for row in rows)
    assert all(row["refused_by"] == "" and row["seconds"] > 0 for row in rows)
    assert len(host.bodies) == 18 and 1 < host.most <= 4, "--batch-size requests at once"
    for body in host.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == (NAME, 0, 9)
    images = [body["messages"][-1]["content"][0] for body in host.bodies if "picture" in text_of(body)]
    uri = images[0]["image_url"]["url"]
    with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == (8, 8)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["dtype"], record["server"]["model"], record["server"]["serves"]) == ("served", NAME, [NAME])
    assert len(judge(tmp_path / "out", "miniature")) == 18


def test_a_failed_call_is_no_answer_and_is_asked_again(
    serve: Callable[[Say], Host], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble: dict[str, int | None] = {"vork": 400, "sun": None}

    def say(body: dict[str, Any]) -> str | int | None:
        return trouble["vork"] if "vork" in text_of(body) else "fine"

    host, out = serve(say), tmp_path / "out"
    words = ["ask", "--data", str(data), "--model", host.model, "--out", str(out), "--batch-size", "4"]
    assert main(words) == 1, "a run with holes is a finding"
    assert "1 failed (first: 400" in capsys.readouterr().out
    assert len(read_replies(out)) == 17 and [row["id"] for row in read_failed(out)] == ["harmful_text-0"]
    trouble["vork"] = None
    assert main(words) == 1
    assert "1 refused (first: content_filter)" in capsys.readouterr().out
    assert missing(out)[0] == 1
    trouble["vork"] = "at last"
    host.bodies.clear()
    assert main(words) == 0
    assert len(host.bodies) == 1, "only what failed is asked again"
    assert not (out / "failed.jsonl").exists() and missing(out) == (0, [])


def test_a_server_that_answers_nothing_stops_the_run(serve: Callable[[Say], Host], tmp_path: Path) -> None:
    data, host = write_suite(tmp_path / "data", per_group=20), serve(lambda body: 400)
    with pytest.raises(ValueError, match="answered none of the last 24 requests: 400"):
        ask("miniature", data, host.model, "none", tmp_path / "out", batch_size=8)
    assert len(host.bodies) == 24 and len(read_failed(tmp_path / "out")) == 24
    assert read_replies(tmp_path / "out") == []


def test_static_prompt_goes_in_front_of_the_question(serve: Callable[[Say], Host], data: Path, tmp_path: Path) -> None:
    host = serve(lambda body: "fine")
    ask("miniature", data, host.model, "static-prompt", tmp_path / "out", limit=6)
    assert all(text_of(body).startswith(prompts.STATIC_PROMPT + "\n") for body in host.bodies)
    row = read_replies(tmp_path / "out")[0]
    assert not row["request"]["text"].startswith(prompts.STATIC_PROMPT), "the row holds what was asked for"
    assert row["trace"] == [f"added to the question: {prompts.STATIC_PROMPT}"]


@pytest.mark.parametrize("defense", ["safety-head", "oracle", "static-prompt+safety-head"])
def test_defenses_that_need_weights_are_refused(defense: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the model's weights.*'static-prompt'"):
        ask("miniature", data, f"http://127.0.0.1:1/v1#{NAME}", defense, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_address_without_a_model_or_with_an_unknown_one_is_refused(
    serve: Callable[[Say], Host], data: Path, tmp_path: Path
) -> None:
    host = serve(lambda body: "fine")
    with pytest.raises(ValueError, match="after a #"):
        ask("miniature", data, host.url, "none", tmp_path / "out")
    with pytest.raises(ValueError, match=r"no model 'big'; one of \['small'\]"):
        ask("miniature", data, f"{host.url}#big", "none", tmp_path / "out")


def test_a_dialogue_keeps_its_turns_and_the_images_stand_in_the_first() -> None:
    request = Request("and then?", ("a.png", "b.png"), history=(("what is it?", "a cup"),), system="be brief")
    said = served.turns(request)
    assert [(turn.role, turn.text) for turn in said] == [
        ("system", "be brief"),
        ("user", "what is it?"),
        ("assistant", "a cup"),
        ("user", "and then?"),
    ]
    assert [len(turn.images) for turn in said] == [0, 2, 0, 0]


@pytest.mark.slow
def test_the_miniature_behind_a_server_says_what_the_engine_says(serve: Callable[[Say], Host], tmp_path: Path) -> None:
    from safevlm.engine import Engine
    from safevlm.miniature.dataset import MiniatureDataConfig, write

    write(tmp_path / "data", MiniatureDataConfig(risky=12, clean=12, per_group=8))
    engine, turn = Engine.load(ROOT / "checkpoints" / "miniature", defense="none", device="cpu"), threading.Lock()

    def say(body: dict[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        parts = [] if isinstance(content, str) else content[:-1]
        opened = [Image.open(BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))) for part in parts]
        with turn:
            return engine.reply_all(
                [Request(text_of(body), tuple(opened))], Generation(max_new_tokens=body["max_tokens"])
            )[0].text

    host = serve(say)
    asked = {"batch_size": 4, "max_new_tokens": 48}
    ask("miniature", tmp_path / "data", host.model, "none", tmp_path / "there", **asked)
    ask("miniature", tmp_path / "data", "m", "none", tmp_path / "here", engine=engine, **asked)
    there, here = (read_replies(tmp_path / name) for name in ("there", "here"))
    same = sum(a["reply"] == b["reply"] for a, b in zip(there, here, strict=True))
    assert same >= 0.9 * len(here), f"{same} of {len(here)} replies are equal"
