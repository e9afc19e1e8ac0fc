"""Lines of a conversation: several as one question, words in quotes, completion, and what a terminal is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from safevlm.serve.console import commands, completion
from safevlm.serve.console.lines import Entry, LineReader
from safevlm.serve.console.screen import Screen


class Names:
    """Knows names of defenses."""

    def defenses(self) -> Sequence[str]:
        return ["none", "safe-clip", "safety-head"]


def completed(line: str) -> list[str]:
    partner: Any = Names()
    return list(commands.completed(partner, line))


@pytest.mark.parametrize(
    ("typed", "entries"),
    [
        (["Hello"], [Entry("Hello", False)]),
        (["  /why "], [Entry("/why", True)]),
        (["one\\", "two\\", "three", "four"], [Entry("one\ntwo\nthree", False), Entry("four", False)]),
        (['"""one', "", " two", 'three"""', "four"], [Entry("one\n\n two\nthree", False), Entry("four", False)]),
        (['"""', "one", '"""'], [Entry("one", False)]),
        (['"""/why"""'], [Entry("/why", False)]),
        (["first\n/second"], [Entry("first\n/second", False)]),
        (["/usr/bin\nis a folder"], [Entry("/usr/bin\nis a folder", False)]),
        (["/why\n"], [Entry("/why", True)]),
        (["one\\"], [Entry("one", False)]),
        (['"""one'], [Entry("one", False)]),
    ],
)
def test_lines_become_questions_and_commands(
    typed: list[str], entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(typed)

    def read(prompt: str = "") -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    reader = LineReader(Screen(), lambda line: ())
    assert [reader.read() for _ in entries] == entries
    with pytest.raises(EOFError):
        reader.read()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my images").mkdir()
    for name in ("a cup.png", "a cat.JPG", "notes.txt", 'it\'s $5 "now".png', ".hidden.png", "policy.yaml"):
        (tmp_path / "my images" / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "my images"


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("/im", ["/image "]),
        ("/re", ["/reset"]),
        ("/p", ["/policy "]),
        ("Where is /im", []),
        ("/what a", []),
        ("/defense sa", ["/defense safe-clip", "/defense safety-head"]),
        ("/image m", [r"/image my\ images/"]),
        (r"/image my\ images/a", [r"/image my\ images/a\ cat.JPG ", r"/image my\ images/a\ cup.png "]),
        ('/image "my images/a cu', ['/image "my images/a cup.png" ']),
        ("/image 'my images/a cu", ["/image 'my images/a cup.png' "]),
        (r"/image ~/my\ images/a\ cu", [r"/image ~/my\ images/a\ cup.png "]),
        (r"/image x.png my\ images/a\ cu", [r"/image x.png my\ images/a\ cup.png "]),
        (r"/image my\ images/.h", [r"/image my\ images/.hidden.png "]),
        (r"/image my\ images/n", []),
        (r"/policy my\ images/", [r"/policy my\ images/policy.yaml "]),
        (r"/save my\ images/n", [r"/save my\ images/notes.txt "]),
        ("/image nowhere/", []),
    ],
)
def test_tab_completes_commands_defenses_and_paths(folder: Path, line: str, lines: list[str]) -> None:
    assert completed(line) == lines


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_completed_path_is_read_as_the_file_that_it_names(folder: Path, quote: str) -> None:
    line = f"/image {quote}~/my images/".replace(" images", " images" if quote else r"\ images")
    found = completed(line)
    assert len(found) == 3, "not every image of the folder is offered"
    for each in found:
        (file,) = commands.files(each.removeprefix("/image ").strip())
        assert Path(file).parent == folder and Path(file).is_file(), each


def test_a_name_with_spaces_needs_no_quotes_where_it_is_a_file(folder: Path) -> None:
    assert commands.files("my images/a cup.png") == ["my images/a cup.png"]
    assert commands.files("~/my images/a cup.png") == [str(folder / "a cup.png")]
    assert commands.files("a.png 'b c.png' d\\ e.png") == ["a.png", "b c.png", "d e.png"]


def test_last_word_ends_the_line() -> None:
    word = completion.last_word(r'/image one "two three')
    assert (word.start, word.quote, word.text) == (11, '"', "two three")


def test_colours_are_for_terminals_and_off_with_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    Screen().line("plain", "error")
    assert capsys.readouterr().out == "plain\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    Screen().line("red", "error")
    assert capsys.readouterr().out == "\x1b[31mred\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    Screen().line("plain", "error")
    assert capsys.readouterr().out == "plain\n"


def test_an_answer_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    Screen().line("a\x1b]0;title\x07b\x9b2J\r\n\tc\u202e")
    assert capsys.readouterr().out == "a\ufffd]0;title\ufffdb\ufffd2J\n\tc\ufffd\n"
