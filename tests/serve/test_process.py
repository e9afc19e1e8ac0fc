"""`safevlm serve` as a process: how it ends, and how it does not begin."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from safevlm.__main__ import main
from tests.engine import engines
from tests.serve.paging import until
from tests.serve.serving import asked
from tests.serve.upstreams import Recorder

MODEL = Path(__file__).parents[2] / "checkpoints" / "miniature"
STARTS = 300.0
"""Seconds in which it must answer, on a machine that does other things too."""
WITHOUT_GRADIO = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gradio":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from safevlm.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def serving(log: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx2.Client]]:
    """The process, once it answers, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    command = [sys.executable, "-m", "safevlm", "serve", "--model", str(MODEL), "--defense", "safe-clip"]
    with log.open("w") as output:
        options = ["--name", "miniature", "--device", "cpu", "--port", str(port), *flags]
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60.0) as client:
            until(lambda: _answers(process, client, log), STARTS)
            yield process, client
    finally:
        process.kill()
        process.wait()


def _answers(process: subprocess.Popen[bytes], client: httpx2.Client, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return client.get("/healthz").status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


def _has_ended_well(log: Path) -> None:
    """Nothing was in progress when the time for it was over; a clock would measure the machine."""
    told = log.read_text()
    assert "graceful" not in told and "Traceback" not in told


@pytest.mark.slow
def test_told_to_end_it_finishes_the_answer_in_progress_and_ends_well(tmp_path: Path) -> None:
    body = {"model": "miniature", "messages": [{"role": "user", "content": "What is it?"}], "stream": True}
    with serving(tmp_path / "log.txt") as (process, client):
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            events = answer.iter_lines()
            assert json.loads(next(events).removeprefix("data: "))["choices"]
            process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(events)
        assert process.wait(STARTS) == 0
    _has_ended_well(tmp_path / "log.txt")


@pytest.mark.slow
def test_in_front_of_another_server_that_one_judges_its_own_answers(
    there: str, recorder: Recorder, tmp_path: Path
) -> None:
    recorder.says("A cup.")
    flags = ("--upstream", there, "--output-guard", "self-check")
    body = {"model": "miniature", "messages": [asked("What is it?", engines.image(1))]}
    with serving(tmp_path / "log.txt", *flags) as (process, client):
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert choice["finish_reason"] == "content_filter"  # "A cup." is neither yes nor no
        recorder.says("no.")
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "no.")
        process.send_signal(signal.SIGINT)
        assert process.wait(STARTS) == 0
    question, judged, *_ = [sent["messages"][-1]["content"] for sent in recorder.bodies]
    assert question[0] == judged[0] and "A cup." in judged[1]["text"] and len(recorder.bodies) == 4


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["self-check", "safe-clip+self-check", "none"])
def test_in_front_of_another_server_a_defense_that_needs_the_model_does_not_begin(
    defense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--upstream", "http://127.0.0.1:1", "--upstream-model", "any", "--device", "cpu"]
    assert main(["serve", "--model", str(MODEL), "--defense", defense, *flags]) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert f"--defense {defense} " in line and "--output-guard self-check" in line and not told.out


@pytest.mark.slow
def test_an_open_page_does_not_keep_it_from_ending_well(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install --no-deps -r requirements-page.txt")
    with serving(tmp_path / "log.txt", "--ui") as (process, client):
        assert client.get("/ui/").status_code == client.get("/ui/config").status_code == httpx2.codes.OK
        with client.stream("GET", "/ui/gradio_api/heartbeat/one") as beats:  # is open as long as a page is
            assert next(beats.iter_raw())
            process.send_signal(signal.SIGTERM)
            assert process.wait(STARTS) == 0
    _has_ended_well(tmp_path / "log.txt")


def test_a_page_without_its_library_is_one_line_and_nothing_begins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_GRADIO, "serve", "--model", str(tmp_path / "none"), "--ui"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STARTS, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "--ui" in line and "gradio" in line and "pip install 'safevlm[serve,ui]'" in line
