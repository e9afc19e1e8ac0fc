"""`safevlm chat`: one question or a conversation, and a guard that can say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from safevlm.__main__ import main
from safevlm.commands import FINDING, OK, WRONG_USAGE
from safevlm.data.images import ImageError
from safevlm.defenses import Policy
from safevlm.engine import Engine
from safevlm.serve import chat_cli
from safevlm.serve.chat_cli import why
from safevlm.taxonomy import DEFAULT
from safevlm.types import Reply, Request
from tests.engine import engines

RISK = ("may_refuse", "illegal")
QUESTION = "What is in the picture?"
ANSWER = "There is a cup."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose head sees the same risk in every image."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = engines.model(says=RISK)
    model.save_pretrained(folder)
    engines.processor_of(model).save_pretrained(folder)
    return folder


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A guarded model that always answers the same."""
    guarded = engines.engine("safety-head", says=RISK)
    with engines.answering(guarded, ANSWER):
        yield guarded


@pytest.fixture
def image(tmp_path: Path) -> str:
    file = tmp_path / "scene.png"
    engines.image().save(file)
    return str(file)


# --- one question -----------------------------------------------------------------------------------------------------


def test_one_question_prints_the_reply_and_nothing_else(
    engine: Engine, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_cli.ask(engine, QUESTION, [image], as_json=False) == OK
    assert capsys.readouterr().out == f"{ANSWER}\n"


def test_json_is_one_object_with_reply_verdict_prompt_and_trace(
    engine: Engine, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_cli.ask(engine, QUESTION, [image], as_json=True) == OK
    out = capsys.readouterr().out
    told = json.loads(out)
    assert out.count("\n") == 1, "one object, one line"
    reply = engine.reply(Request(QUESTION, (image,)))
    assert (told["reply"], told["prompt"], told["trace"]) == (ANSWER, reply.prompt, list(reply.trace))
    assert (told["verdict"]["level"], told["verdict"]["category"]) == RISK
    assert set(told["verdict"]["level_probabilities"]) == set(DEFAULT.level_names)
    assert told["refused_by"] == ""


def test_refusal_is_a_reply_and_no_failure(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    guarded = engines.engine("safety-head", says=RISK, policy=Policy(DEFAULT, {"may_refuse": "refuse"}))
    assert chat_cli.ask(guarded, QUESTION, [image], as_json=True) == OK
    assert json.loads(capsys.readouterr().out)["refused_by"] == "safety-head"


def test_command_answers_behind_the_checkpoints_own_guard(
    folder: Path, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("levels: {may_refuse: refuse}", encoding="utf-8")
    words = ["chat", "--model", str(folder), "--image", image, "--ask", QUESTION, "--device", "cpu"]
    assert main([*words, "--policy", str(policy), "--json"]) == OK
    told = json.loads(capsys.readouterr().out)
    assert told["refused_by"] == "safety-head"
    assert "illegal content" in told["reply"]
    assert main([*words, "--policy", str(policy)]) == OK
    assert capsys.readouterr().out == f"{told['reply']}\n", "something else than the reply is on stdout"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--image", "nowhere.png"], "nowhere.png: no such image file"),
        (["--policy", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistake_is_one_line_on_stderr_and_exit_code_1(
    folder: Path, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--model", str(folder), "--ask", QUESTION, "--device", "cpu", *flags]) == FINDING
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and told in errors[0], captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_an_unknown_defense_is_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", str(folder), "--ask", QUESTION, "--device", "cpu", "--defense", "magic"]) == 2
    assert "unknown defense 'magic'" in capsys.readouterr().err


def test_no_model_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["chat", "--ask", QUESTION])
    assert caught.value.code == 2


# --- a conversation ---------------------------------------------------------------------------------------------------

Talk = Callable[..., list[str]]


@pytest.fixture
def asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach the engine."""
    requests, reply = [], engine.reply
    monkeypatch.setattr(engine, "reply", lambda request, *rest: requests.append(request) or reply(request, *rest))
    return requests


@pytest.fixture
def talk(
    engine: Engine, asked: list[Request], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Talk:
    """Types lines, then Ctrl-D; what was printed for each line, after the greeting."""

    def typed(lines: Sequence[str], images: Sequence[str] = ()) -> list[str]:
        left, printed = iter(lines), []

        def read(prompt: str = "") -> str:
            printed.append(capsys.readouterr().out)
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        assert chat_cli.talk(engine, images) == OK
        assert not list(left), "the conversation ended before its last line"
        return [*printed[1:], capsys.readouterr().out][: len(lines)]

    return typed


def test_conversation_is_remembered(talk: Talk, asked: list[Request], image: str) -> None:
    assert talk([QUESTION, "", "Is it red?"], [image]) == [f"{ANSWER}\n", "", f"{ANSWER}\n"]
    assert [(request.text, request.history) for request in asked] == [
        (QUESTION, ()),
        ("Is it red?", ((QUESTION, ANSWER),)),
    ]
    assert all(request.images == (image,) for request in asked)


def test_image_starts_a_new_conversation(talk: Talk, asked: list[Request], image: str) -> None:
    out = talk(["Hello", f"/image {image}", QUESTION, "/image", "Bye"])
    assert "scene.png" in out[1]
    hello, looked, bye = asked
    assert (looked.images, looked.history) == ((image,), ()), "an earlier talk is told as if it were about the image"
    assert (bye.images, bye.history) == ((), ())
    assert hello.images == ()


def test_bad_image_says_so_and_changes_nothing(talk: Talk, asked: list[Request], image: str) -> None:
    out = talk([QUESTION, "/image nowhere.png", "And?"], [image])
    assert "nowhere.png: no such image file" in out[1]
    assert (asked[1].images, asked[1].history) == ((image,), ((QUESTION, ANSWER),))


def test_bad_image_at_the_start_is_an_error(engine: Engine) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        chat_cli.talk(engine, ["nowhere.png"])


def test_why_before_and_after_a_question(talk: Talk, image: str) -> None:
    out = talk(["/why", QUESTION, "/why"], [image])
    assert out[0] == "nothing was asked yet\n"
    assert "level may_refuse, category illegal" in out[2]


def test_reset_forgets_the_talk_and_keeps_the_image(talk: Talk, asked: list[Request], image: str) -> None:
    talk([QUESTION, "/reset", "And?"], [image])
    assert (asked[1].images, asked[1].history) == ((image,), ())


@pytest.mark.parametrize("word", ["/what", "/imagine a.png", "/"])
def test_unknown_command_is_not_asked_and_lists_the_commands(talk: Talk, asked: list[Request], word: str) -> None:
    out = talk([word])
    assert f"unknown command {word.split()[0]}" in out[0]
    assert "/image FILE" in out[0]
    assert not asked


def test_help_names_every_command(talk: Talk) -> None:
    out = talk(["/help"])[0]
    assert all(word in out for word in ("/image", "/why", "/reset", "/help", "/quit"))


@pytest.mark.parametrize("word", ["/quit", "/exit", "  /quit  "])
def test_quit_leaves(talk: Talk, asked: list[Request], word: str) -> None:
    assert talk([word]) == [""]
    assert not asked


def test_end_of_input_leaves(talk: Talk) -> None:
    assert talk([]) == []


def test_greeting_names_model_and_guard(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt="": "/quit")
    chat_cli.talk(engine, [])
    greeting = capsys.readouterr().out
    assert greeting == f"{engine.loaded.path} behind safety-head. /help lists the commands.\n"


# --- why --------------------------------------------------------------------------------------------------------------


def _reply(image: str, breaks: str = "", question: str = QUESTION, **options: object) -> Reply:
    guarded = engines.engine("safety-head", **{"says": RISK, **options})
    if breaks:

        def broken(*_: object) -> None:
            raise RuntimeError("it broke")

        setattr(guarded.defense, breaks, broken)
    with engines.answering(guarded, ANSWER):
        return guarded.reply(Request(question, (image,) if image else ()))


def test_why_of_a_hint_shows_verdict_probabilities_and_hint(image: str) -> None:
    told = why(_reply(image))
    assert "verdict: level may_refuse, category illegal (by safety-head)" in told
    assert "level: may_refuse 1.00" in told and "category: illegal 1.00" in told
    assert "added to the question: Note: the image contains illegal content." in told
    assert "unchanged" not in told


def test_why_of_a_refusal_says_that_the_model_was_not_asked(image: str) -> None:
    told = why(_reply(image, policy=Policy(DEFAULT, {"may_refuse": "refuse"})))
    assert "verdict: level may_refuse, category illegal" in told
    assert "answered by the guard (safety-head); the model was not asked" in told
    assert "unchanged" not in told


def test_why_of_a_clean_request_says_that_nothing_was_changed(image: str) -> None:
    told = why(_reply(image, says=("safe", "clean")))
    assert "verdict: level safe, category clean" in told
    assert "the question went to the model unchanged" in told


def test_why_of_a_failed_guard_says_what_failed_and_claims_no_verdict(image: str) -> None:
    told = why(_reply(image, breaks="detect"))
    assert "it broke" in told
    assert "the model was not asked" in told
    assert "level safe, category clean" not in told, "the guard saw nothing because it broke; that is no verdict"


def test_why_of_a_failed_review_does_not_claim_that_the_model_was_not_asked(image: str) -> None:
    told = why(_reply(image, breaks="review"))
    assert "it broke" in told
    assert "the model was not asked" not in told


def test_why_of_a_guard_that_failed_open_says_so(image: str) -> None:
    told = why(_reply(image, breaks="detect", on_error="allow"))
    assert "unguarded" in told and "it broke" in told
    assert "level safe, category clean" not in told, "the guard saw nothing because it broke; that is no verdict"


# --- terminals --------------------------------------------------------------------------------------------------------


def _chat(folder: Path, typed: bytes, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "safevlm", "chat", "--model", str(folder), *words]
    return subprocess.run(command, input=typed, capture_output=True, env={**os.environ, **environment})


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_no_text_is_told_and_the_conversation_goes_on(folder: Path, encoding: str) -> None:
    typed = b"Is \xff this text?\nWhat is it?\n" + "Zo\u00eb \U0001f600?\n".encode() + b"/why\n/quit\n"
    done = _chat(folder, typed, PYTHONIOENCODING=encoding)
    assert done.returncode == OK, done.stderr.decode()
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"error: requests[0].text" in done.stdout
    assert b"not looked" in done.stdout, "the conversation did not go on"


@pytest.mark.parametrize("words", [["chat", "--model", "x", "--ask", "a\udcff"], ["train", "\udcff.yaml"], ["\udcff"]])
def test_words_that_are_no_text_are_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == WRONG_USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "error: argument" in said and "udcff" in said


@pytest.mark.parametrize("line", ["a \ud83d", "a \udcff"])
def test_half_a_character_is_told_and_the_conversation_goes_on(
    engine: Engine, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter([line, QUESTION, "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert chat_cli.talk(engine, []) == OK
    said = capsys.readouterr().out
    assert "error: requests[0].text" in said and said.endswith(f"{ANSWER}\n")
