"""JSON lists and JSONL, one row at a time: files of a million rows never stand in memory as a whole.

A row comes with its place, `file:line` (JSONL) or `file[index]` (a list), which every later error starts with. What
`safevlm.files` takes for an error in JSON (a repeated key, NaN, half a character) is one here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # typeshed leaves it out
from pathlib import Path
from typing import Any, TextIO

from safevlm.files import FileError, strict_json, undecodable_line

CHUNK = 1 << 20
"""Characters read at once from a JSON list; doubled while a single row does not fit."""


class RowError(FileError):
    """A file that is missing, not UTF-8 or not JSON; the message starts with its place."""


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row. RowError: no such file, not UTF-8, malformed."""
    if not path.is_file():
        raise RowError(f"{path}: no such record file")
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = _first_characters(file)
            rows = _list_rows(path, file, start) if start.lstrip().startswith("[") else _lines(path, file, start)
            yield from rows
    except UnicodeDecodeError as error:
        raise RowError(f"{path}:{undecodable_line(path)}: not UTF-8 text; save the file as UTF-8") from error


def _first_characters(file: TextIO) -> str:
    """The start of the file up to its first character that is no white space."""
    start = ""
    while not start.strip() and (piece := file.readline(CHUNK)):
        start += piece
    return start


def _lines(path: Path, file: TextIO, start: str) -> Iterator[tuple[str, Any]]:
    # a file's own lines end at \n only; `splitlines` breaks at U+2028 too
    name = str(path)
    for number, line in enumerate(chain(_whole_lines(start, file), file), start=1):
        if line.isspace() or not line:
            continue
        place = f"{name}:{number}"
        yield place, line_row(line, place)


def line_row(line: str, place: str) -> Any:
    """The row of a line. RowError."""
    try:
        return strict_json.decode(line)
    except json.JSONDecodeError as error:
        raise RowError(f"{place}: malformed JSON line: {error.msg}") from error
    except strict_json.FAULTS as error:
        raise RowError(f"{place}: malformed JSON line: {strict_json.told(error)}") from error


def _whole_lines(start: str, file: TextIO) -> Iterator[str]:
    lines = start.split("\n")
    yield from lines[:-1]
    if lines[-1]:  # the first line was longer than a chunk
        yield lines[-1] + file.readline()


def _list_rows(path: Path, file: TextIO, start: str) -> Iterator[tuple[str, Any]]:
    window = _Window(path, file, start)
    window.expect("[")
    if window.peek() == "]":
        return window.expect_end()
    index = 0
    while True:
        yield f"{path}[{index}]", window.value()
        index += 1
        if window.peek() != ",":
            break
        window.expect(",")
    window.expect_end()


class _Window:
    """The part of a JSON text that is in memory; what stands before `at` has been read."""

    def __init__(self, path: Path, file: TextIO, start: str) -> None:
        self.path, self.file, self.text, self.at = path, file, start, 0
        self.lines_before = 0

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        self.at = WHITESPACE.match(self.text, self.at).end()
        while self.at == len(self.text) and self._more(CHUNK):
            self.at = WHITESPACE.match(self.text, self.at).end()
        return self.text[self.at : self.at + 1]

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise self._error(f"expected {character!r}", self.at)
        self.at += 1

    def expect_end(self) -> None:
        self.expect("]")
        if self.peek():
            raise self._error("text after the end of the list", self.at)

    def value(self) -> Any:
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = strict_json.DECODER.raw_decode(self.text, self.at)
                strict_json.check_value(self.text[self.at : end], value)
            except json.JSONDecodeError as error:
                start = self.at
                if not self._more(size):
                    raise self._error(error.msg, error.pos - start) from error
                size *= 2  # so that a row of any size, or a broken one, costs linear time
                continue
            except strict_json.FAULTS as error:
                raise self._error(strict_json.told(error), self.at) from error
            if end == len(self.text):  # a number may go on
                end -= self.at
                if self._more(CHUNK):
                    continue
            self.at = end
            return value

    def _more(self, size: int) -> bool:
        piece = self.file.read(size)
        self.lines_before += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)

    def _error(self, message: str, position: int) -> RowError:
        line = 1 + self.lines_before + self.text.count("\n", 0, position)
        return RowError(f"{self.path}:{line}: malformed JSON: {message}")
