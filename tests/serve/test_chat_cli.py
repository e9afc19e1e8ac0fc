"""`safevlm chat`: one question or a conversation, and a guard that can say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from safevlm.__main__ import main
from safevlm.commands import FINDING, OK, WRONG_USAGE
from safevlm.data.images import open_image
from safevlm.defenses import Policy
from safevlm.engine import Engine
from safevlm.serve import chat_cli
from safevlm.serve.console import account
from safevlm.serve.console.commands import COMMANDS
from safevlm.serve.console.local_model import LocalModel
from safevlm.serve.console.partners import Sampling
from safevlm.serve.console.transcript import ChatImage
from safevlm.taxonomy import DEFAULT
from safevlm.types import Reply, Request
from tests.engine import engines
from tests.serve.talking import typing

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
    assert chat_cli.ask(LocalModel(engine), QUESTION, [ChatImage.opened(image)]) == OK
    assert capsys.readouterr().out == f"{ANSWER}\n"


def test_json_is_one_object_with_reply_verdict_prompt_and_trace(
    engine: Engine, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_cli.ask(LocalModel(engine), QUESTION, [ChatImage.opened(image)], as_json=True) == OK
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
    assert chat_cli.ask(LocalModel(guarded), QUESTION, [ChatImage.opened(image)], as_json=True) == OK
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


SERVER = ["--server", "http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ask", QUESTION], "--model"),
        (["--model", "m", "--json"], "--ask"),
        (["--model", "m", "--api-key", "k"], "--server"),
        (["--model", "m", "--top-p", "0.5"], "--temperature"),
        ([*SERVER, "--policy", "p.yaml"], "--policy"),
        ([*SERVER, "--defense", "none"], "--defense"),
        (["--server", "127.0.0.1:9"], "http://"),
        (["--server", "http://me:secret@127.0.0.1:9"], "SAFEVLM_API_KEY"),
        ([*SERVER, "--api-key", "a\nb"], "key"),
    ],
)
def test_flags_that_cannot_be_are_wrong_usage_that_names_them(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *words]) == WRONG_USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and told in said and "secret" not in said


# --- a conversation ---------------------------------------------------------------------------------------------------

Talk = Callable[..., list[str]]


@pytest.fixture
def asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach the engine."""
    requests, reply = list[Request](), engine.reply_each

    def listening(batch: Sequence[Any], *rest: Any) -> list[Reply]:
        requests.extend(each.request for each in batch)
        return reply(batch, *rest)

    monkeypatch.setattr(engine, "reply_each", listening)
    return requests


@pytest.fixture
def talk(
    engine: Engine, asked: list[Request], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Talk:
    typed = typing(monkeypatch, capsys)
    return lambda *lines, **options: typed(LocalModel(engine), *lines, **options)


def test_conversation_is_remembered(talk: Talk, asked: list[Request], image: str) -> None:
    assert talk([QUESTION, "", "Is it red?"], [image]) == [f"{ANSWER}\n", "", f"{ANSWER}\n"]
    assert [(request.text, request.history) for request in asked] == [
        (QUESTION, ()),
        ("Is it red?", ((QUESTION, ANSWER),)),
    ]
    assert [request.turns for request in asked] == [((QUESTION, 1),), ((QUESTION, 1), ("Is it red?", 0))]


def test_images_join_a_later_turn_and_the_conversation_stays(talk: Talk, asked: list[Request], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.png", "my scene.png", "three.png")]
    for seed, file in enumerate(files):
        engines.image(seed).save(file)
    one, two, three = map(str, files)
    out = talk(["Hello", f'/image {one} "{two}"', QUESTION, f"/image {three}", "And now?"])
    assert "one.png" in out[1] and "my scene.png" in out[1]
    assert [request.turns for request in asked] == [
        (("Hello", 0),),
        (("Hello", 0), (QUESTION, 2)),
        (("Hello", 0), (QUESTION, 2), ("And now?", 1)),
    ]
    shown = [open_image(source).tobytes() for source in asked[-1].images]
    assert shown == [open_image(file).tobytes() for file in files], "images are lost or out of order"


def test_an_image_that_went_away_stays_in_its_conversation(talk: Talk, asked: list[Request], tmp_path: Path) -> None:
    file = tmp_path / "scene.png"
    engines.image().save(file)
    before = open_image(file).tobytes()

    def lines() -> Iterator[str]:
        yield QUESTION
        file.unlink()
        yield "And?"

    assert talk(lines(), [str(file)])[1] == f"{ANSWER}\n"
    assert open_image(asked[1].images[0]).tobytes() == before


def test_image_without_a_file_starts_a_new_conversation(talk: Talk, asked: list[Request], image: str) -> None:
    talk([QUESTION, "/image", "Bye"], [image])
    assert (asked[1].images, asked[1].history) == ((), ())


@pytest.mark.parametrize("words", ["nowhere.png", "{image} nowhere.png", '"nowhere.png'])
def test_bad_image_says_so_and_changes_nothing(talk: Talk, asked: list[Request], image: str, words: str) -> None:
    out = talk([QUESTION, f"/image {words.format(image=image)}", "And?"], [image])
    assert out[1].startswith("error: ") and "nowhere.png" in out[1] and out[1].count("\n") == 1
    assert asked[1].turns == ((QUESTION, 1), ("And?", 0))


def test_reset_forgets_the_talk_and_keeps_the_image(talk: Talk, asked: list[Request], image: str) -> None:
    talk([QUESTION, "/reset", "And?"], [image])
    assert asked[1].turns == (("And?", 1),)


def test_an_answer_without_a_word_is_no_turn(
    image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    silent = engines.engine("safety-head", own=engines.model(says=RISK))
    with engines.answering(silent, engines.tokenizer().eos_token):
        out = typing(monkeypatch, capsys)(
            LocalModel(silent), [QUESTION, f"/save {tmp_path / 'talk.json'}", "/reset"], [image]
        )
    assert out[0] == "\n" and out[1].startswith("error: nothing was said yet")
    assert "1 image" in out[2], "the image is lost with the answer"


def test_system_prompt_and_length_reach_the_model(
    engine: Engine, talk: Talk, asked: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert talk([QUESTION], sampling=Sampling(max_new_tokens=2), system="Be brief.") == ["There is\n"]
    assert asked[0].system == "Be brief."


def test_why_before_and_after_a_question(talk: Talk, image: str) -> None:
    out = talk(["/why", QUESTION, "/why"], [image])
    assert out[0] == "nothing was asked yet\n"
    assert "level may_refuse, category illegal" in out[2]


@pytest.mark.parametrize("word", ["/what", "/imagine a.png", "/"])
def test_unknown_command_is_not_asked_and_lists_the_commands(talk: Talk, asked: list[Request], word: str) -> None:
    out = talk([word])
    assert f"unknown command {word.split()[0]}" in out[0]
    assert "/image [FILE…]" in out[0]
    assert not asked


def test_help_names_every_command(talk: Talk) -> None:
    out = talk(["/help"])[0]
    assert all(word in out for word in (*COMMANDS, "Ctrl-C"))


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
    chat_cli.talk(LocalModel(engine))
    greeting = capsys.readouterr().out
    assert greeting == f"{engine.loaded.path} behind safety-head. /help lists the commands.\n"


# --- why --------------------------------------------------------------------------------------------------------------


def why(reply: Reply) -> str:
    return "\n".join(account.why(reply))


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
    assert chat_cli.talk(LocalModel(engine)) == OK
    said = capsys.readouterr().out
    assert "error: requests[0].text" in said and said.endswith(f"{ANSWER}\n")
