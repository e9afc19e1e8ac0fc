"""Wrong usage exits with 2 and names the flag; a file's content or a failed check exits with 1.

No command here gets as far as loading a model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safevlm.__main__ import COMMANDS, main, parser_for
from safevlm.miniature import __main__ as miniature

ROOT = Path(__file__).parents[1]
ASK = ["eval", "ask", "--model", "checkpoints/miniature", "--data", "d", "--out", "o"]
SERVE = ["serve", "--model", "m"]
JUDGE = ["eval", "judge", "--out", "o"]

WRONG: list[tuple[list[str], str]] = [
    ([], "COMMAND"),
    (["nope"], "nope"),
    (["train", "nope.yaml"], "nope.yaml"),
    (["train", "miniature_stage1", "--optim.lr", "0"], "optim.lr"),
    (["train", "miniature_stage1", "--stage", "nope"], "nope"),
    (["check", "--nodes", "0"], "--nodes"),
    (["check", "--gpu-memory", "nan"], "--gpu-memory"),
    (["check", "nowhere"], "nowhere"),
    (["convert"], "SRC"),
    (["mix"], "MIX"),
    (["merge", "run"], "--out"),
    (["pair", "a.jsonl", "--out", "o"], "--model"),
    (["pair", "a.jsonl", "--out", "o", "--model", "m", "--malicious", "0"], "--malicious"),
    (["chat"], "--model"),
    (["embed", "c.yaml", "--clip", "c", "--out", "o", "--tau", "1.5"], "--tau"),
    (["embed", "c.yaml", "--clip", "c", "--out", "o", "--feature", "nope"], "--feature"),
    (["audit", "d", "--model", "m", "--out", "o", "--shard", "3/2"], "--shard"),
    (["audit", "d", "--model", "m", "--out", "o", "--threshold", "0"], "--threshold"),
    (["analyze", "nope"], "nope"),
    (["analyze", "calibration", "--model", "m", "--data", "d", "--out", "o", "--target-fpr", "1"], "--target-fpr"),
    (["eval", "nope"], "nope"),
    ([*ASK, "--suite", "nope"], "--suite"),
    ([*ASK, "--defense", "nope"], "nope"),
    ([*ASK, "--perturb", "nope"], "--perturb"),
    ([*ASK, "--perturb", "jpeg:1000"], "--perturb"),
    ([*ASK, "--shard", "0/2"], "--shard"),
    ([*ASK, "--nope", "1"], "--nope"),
    ([*JUDGE, "--judge", "nope"], "nope"),
    (["eval", "report", "--out", "o"], "--run"),
    (["eval", "report", "--out", "o", "--run", "nameless"], "--run"),
    (["bench", "nope"], "nope"),
    ([*SERVE, "--upstream-key", "k"], "--upstream"),
    ([*SERVE, "--upstream", "127.0.0.1:8001"], "--upstream"),
    ([*SERVE, "--upstream", "http://127.0.0.1:1", "--quantize", "nf4"], "--quantize"),
    ([*SERVE, "--allow-domain", "example.org/images"], "--allow-domain"),
]
CONTENT: list[list[str]] = [
    ["mix", "README.md", "--out", "{out}"],
    ["merge", "{out}", "--out", "{out}/merged"],
    ["chat", "--model", "{out}", "--ask", "Hello?"],
    ["check", "{out}/recipe.yaml"],
]
"""What is given can be read as a command line; what lies there is wrong."""


def _code(words: list[str]) -> object:
    try:
        return main(words)
    except SystemExit as left:
        return left.code


def _numbers(command: str) -> Iterator[tuple[list[str], argparse.Action]]:
    """Every flag of a command that takes a number, with the words of its sub-command."""
    left: list[tuple[list[str], argparse.ArgumentParser]] = [([], parser_for(command))]
    while left:
        words, parser = left.pop()
        for action in parser._actions:  # argparse has no public list of them
            if isinstance(action, argparse._SubParsersAction):
                own = {name: each for name, each in action.choices.items() if words or name == command}
                left += [([*words, name], each) for name, each in own.items()]
            elif action.option_strings and action.nargs != 0 and _is_number(action):
                yield words, action


def _is_number(action: argparse.Action) -> bool:
    numbers = ("N", "K", "P", "S", "X", "GiB")
    return action.metavar in numbers or action.dest == "seed" or isinstance(action.default, int | float)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_no_number_of_a_command_may_be_negative_or_nan(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    tried = 0
    for words, action in _numbers(command):
        for value in ("-1", "nan", "many"):
            flag = action.option_strings[0]
            assert _code([*words, f"{flag}={value}"]) == 2, f"{words} {flag}={value}"
            assert flag in capsys.readouterr().err.splitlines()[-1], f"{words} {flag}={value}: not named"
            tried += 1
    assert tried or command in ("convert", "chat")


@pytest.mark.parametrize(
    "flag", ["--limit", "--batch-size", "--max-new-tokens"], ids=lambda flag: flag.removeprefix("--")
)
def test_nothing_is_asked_zero_times(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _code([*ASK, flag, "0"]) == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("words", "named"), WRONG, ids=lambda part: " ".join(part) if isinstance(part, list) else "")
def test_wrong_usage_exits_with_2_and_is_named(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("", encoding="utf-8")
    code = _code(words)
    said = capsys.readouterr().err
    assert code == 2, said
    assert named in said.splitlines()[-1], said
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jsonl"], "something was begun"


@pytest.mark.parametrize("words", CONTENT, ids=" ".join)
def test_what_lies_in_files_exits_with_1(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "recipe.yaml").write_text("stage: stage1\n", encoding="utf-8")
    assert _code([word.replace("{out}", str(tmp_path)) for word in words]) == 1, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ([], 2, "COMMAND"),
        (["nope"], 2, "nope"),
        (["data"], 2, "--out"),
        (["data", "--out", "o", "--risky", "-1"], 2, "--risky"),
        (["data", "--out", "o", "--layout", "nope"], 2, "--layout"),
        (["contaminate", "--out", "o", "--risky", "1.5"], 2, "--risky"),
        (["contaminate", "--out", "o", "--risky", "nan"], 2, "--risky"),
        (["contaminate", "--out", "o", "--split", "tset"], 2, "--split"),
        (["judge-server", "--port", "70000"], 2, "--port"),
        (["audit-truth", "--truth", "gone", "--audit", "gone", "--out", "o"], 1, "gone"),
    ],
    ids=str,
)
def test_the_miniatures_commands_too(
    words: list[str], code: int, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["miniature", *words])
    try:
        found: Any = miniature.main()
    except SystemExit as left:
        found = left.code
    said = capsys.readouterr().err
    assert found == code and named in said.splitlines()[-1], said


SCRIPTS = {
    "scripts/stage1.sh": ["MODEL", "DATA", "OUT"],
    "scripts/stage2.sh": ["MODEL", "DATA", "OUT"],
    "scripts/merge.sh": ["RUN", "OUT"],
    "scripts/train_defenses.sh": ["MODEL", "DATA", "OUT"],
    "eval/rtvlm.sh": ["MODEL", "DATA", "OUT"],
    "eval/all.sh": ["MODEL", "DATA", "OUT"],
    "eval/compare_defenses.sh": ["MODEL", "DATA", "OUT"],
    "eval/ablations/safevlm.sh": ["MODEL", "DATA", "OUT"],
    "eval/bench_stage1.sh": ["OUT"],
}


def _script(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / script), *words],
        env={**os.environ, "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_an_argument_exits_with_2_and_names_it(script: str) -> None:
    for given, missing in enumerate(SCRIPTS[script]):
        done = _script(script, *SCRIPTS[script][:given])
        assert done.returncode == 2, f"{script} without {missing}: {done.stderr}"
        assert missing in done.stderr.splitlines()[-1]


def test_a_launcher_that_cannot_be_exits_with_2() -> None:
    assert _script("scripts/stage1.sh", "m", "d", "o", LAUNCHER="nope").returncode == 2
    for environment in ({"NODES": "2"}, {"NODES": "2", "LAUNCHER": "torchrun"}):
        assert _script("scripts/stage1.sh", "m", "d", "o", **environment).returncode == 2
    for environment in ({"GPUS": "0"}, {"NODES": "x"}, {"GPUS": "-1"}):
        assert _script("scripts/stage1.sh", "m", "d", "o", **environment).returncode == 2, environment
