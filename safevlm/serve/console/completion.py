"""What a line of a command can become: names of commands, paths, defenses. Lines are completed as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

SPECIAL = re.compile(r"([^\w@%+=:,./~-])")
"""What a path without quotes has behind a backslash."""


@dataclass(frozen=True)
class LastWord:
    """The word that is being typed."""

    start: int
    """Where it begins in the line."""
    quote: str
    """The quote that is open; empty: none."""
    text: str
    """Without quotes and backslashes."""


def last_word(line: str) -> LastWord:
    """Of a line in the quoting of a shell."""
    start, quote, text, is_escaped = 0, "", "", False
    for place, letter in enumerate(line):
        if is_escaped:
            text, is_escaped = text + letter, False
        elif letter == "\\" and quote != "'":
            is_escaped = True
        elif letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        elif letter == " " and not quote:
            start, text = place + 1, ""
        else:
            text += letter
    return LastWord(start, quote, text)


def names(line: str, known: Iterable[str]) -> list[str]:
    """The line with its last word made one of the known ones."""
    word = last_word(line)
    return [line[: word.start] + name for name in sorted(known) if name.startswith(word.text)]


def paths(line: str, endings: Collection[str] = ()) -> list[str]:
    """The line with its last word made a path that is there. `endings`: of the files that are meant; none: all."""
    word = last_word(line)
    folder, prefix = os.path.split(word.text)
    if word.text == "~":
        return [f"{line}/"]
    try:
        found = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    head, quoted = line[: word.start], _quoting(word.quote)
    lines = []
    for entry in found:
        is_folder = entry.is_dir()
        is_meant = is_folder or not endings or os.path.splitext(entry.name)[1].lower() in endings
        is_shown = entry.name.startswith(prefix) and (prefix.startswith(".") or not entry.name.startswith("."))
        if is_meant and is_shown:
            whole = os.path.join(folder, entry.name)
            lines.append(head + quoted(f"{whole}/", True) if is_folder else f"{head}{quoted(whole, False)} ")
    return lines


def _quoting(quote: str) -> Callable[[str, bool], str]:
    """`(path, is_open)` → as it is typed; an open one can go on."""

    def quoted(path: str, is_open: bool) -> str:
        if not quote:
            return SPECIAL.sub(r"\\\1", path)
        inner = re.sub(r'(["\\])', r"\\\1", path) if quote == '"' else path
        return f"{quote}{inner}" if is_open else f"{quote}{inner}{quote}"

    return quoted
