"""`safevlm chat` in a pseudo-terminal: completion, paste, colours, and Ctrl-C in the middle of an answer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from safevlm.commands import OK
from safevlm.engine import Engine
from safevlm.serve.console.lines import PROMPT
from tests.engine import engines
from tests.serve.serving import serving
from tests.serve.terminals import END, INTERRUPT, PseudoTerminal, terminal

RISK = ("may_refuse", "illegal")
POSITIONS = 4096
"""Enough for an answer that goes on while somebody reaches for the keyboard."""
PASTE = "\x1b[200~{}\x1b[201~"
TABULATOR = "\t"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose model never ends an answer, and whose head sees the same risk in every image."""
    folder = tmp_path_factory.mktemp("endless")
    model = engines.model(says=RISK)
    model.config.text_config.max_position_embeddings = POSITIONS
    with torch.no_grad():
        model.lm_head.weight[engines.tokenizer().eos_token_id] = 0.0
    model.save_pretrained(folder)
    engines.processor_of(model).save_pretrained(folder)
    return folder


def _ask_and_stop(there: PseudoTerminal, question: str, last: str) -> None:
    """Ctrl-C as soon as something of the answer is seen. `last`: the last words of the question."""
    there.see(PROMPT)
    there.type(question)
    there.see(last)
    there.see("\n")
    before = len(there.seen)
    while len(there.seen) < before + 40:
        assert there.process.poll() is None
        time.sleep(0.005)
    there.type(INTERRUPT)
    there.see("stopped")


def test_a_conversation_at_a_terminal(endless: Path, tmp_path: Path) -> None:
    (tmp_path / "my images").mkdir()
    for name, seed in (("a cup.png", 0), ("a tree.png", 1), ("notes.txt", 2)):
        engines.image(seed).save(tmp_path / "my images" / name, "PNG")
    words = ["chat", "--model", str(endless), "--device", "cpu", "--max-new-tokens", str(POSITIONS)]
    with terminal(words, tmp_path, HOME=str(tmp_path)) as there:
        there.see("/help lists the commands.")
        there.see(PROMPT)
        there.type(f"/im{TABULATOR}~/my{4 * TABULATOR}")
        shown = there.see("a\\ tree.png")
        assert "cup.png" in shown and "notes.txt" not in shown
        there.type(f"cu{TABULATOR}~/my{TABULATOR}a\\ t{TABULATOR}\r")
        there.see("looking at a cup.png, a tree.png")

        _ask_and_stop(there, "What is it?\r", "it?")
        there.see(PROMPT)
        there.type("/why\r")
        there.see("verdict: level may_refuse, category illegal")
        there.see("added to the question")

        _ask_and_stop(there, PASTE.format("first line\nsecond\tline") + "\r", "second")
        there.see(PROMPT)
        there.type("/save talk.json\r")
        there.see("2 answers in talk.json")
        saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
        said = [message["content"] for message in saved["messages"]]
        assert [part["type"] for part in said[0]] == ["image_url", "image_url", "text"]
        assert said[2] == "first line\nsecond\tline", "a paste is not one question"
        assert said[1] and said[3] and all(answer["stopped"] for answer in saved["answers"])

        there.type("/reset\r/save talk.json\r")
        there.see("error: nothing was said yet")
        _ask_and_stop(there, "Hello\r", "Hello")
        for answer, told in (("n", "stays as it is"), ("y", "1 answer in")):
            there.type("/save talk.json\r")
            there.see("overwrite it?")
            there.type(f"{answer}\r")
            there.see(told)
        assert len(json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["answers"]) == 1

        there.see(PROMPT)
        there.type(f"half a question{INTERRUPT}")
        there.see("Ctrl-C again")
        there.type("/why\r")
        there.see("added to the question")
        there.see(PROMPT)
        there.type(INTERRUPT)
        there.see("Ctrl-C again")
        there.see(PROMPT)
        there.type(INTERRUPT)
        assert there.ends() == OK
        assert "Traceback" not in there.seen
        assert "\x1b[1;36m" in there.seen, "no colours at a terminal"


def test_a_conversation_with_a_server_at_a_terminal(endless: Path, tmp_path: Path) -> None:
    with serving(Engine.load(endless, device="cpu")) as served:
        words = ["chat", "--server", served.address, "--max-new-tokens", str(POSITIONS)]
        with terminal(words, tmp_path, NO_COLOR="1") as there:
            there.see("/help lists the commands.")
            _ask_and_stop(there, "What is it?\r", "it?")
            deadline = time.monotonic() + 60
            while served.model.batches.busy_since is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert served.model.batches.busy_since is None, "the server goes on with an answer that nobody reads"
            there.see(PROMPT)
            there.type("/why\r")
            there.see("not told: the answer was stopped")
            _ask_and_stop(there, '"""one\r\rtwo"""\r', 'two"""')
            there.see(PROMPT)
            there.type("/save talk.json\r")
            there.see("2 answers in")
            there.see(PROMPT)
            there.type(END)
            assert there.ends() == OK
            assert "Traceback" not in there.seen and "\x1b[1;36m" not in there.seen
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert saved["messages"][2] == {"role": "user", "content": "one\n\ntwo"}
