"""What the user types: a question, perhaps of several lines, or a command.

A pasted text of several lines is one question where readline knows bracketed paste (GNU readline 8.1 and later); and
everywhere, also in a pipe, a line that ends with a backslash goes on in the next one, and a block stands between two
lines of three double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from safevlm.serve.console.screen import Screen

QUOTES = '"""'
PROMPT, MORE = "> ", "… "
SHOWN = 60
"""Names of what a line can become."""
ESCAPES = re.compile(r"(\x1b\[[0-9;]*m)")

Complete = Callable[[str], Sequence[str]]
"""The line so far → whole lines that it can become."""


@dataclass(frozen=True)
class Entry:
    """What was typed."""

    text: str
    is_command: bool


class LineReader:
    """Reads entries; with readline on a terminal: editing, history of this conversation, completion."""

    def __init__(self, screen: Screen, complete: Complete) -> None:
        self.screen = screen
        self.is_reading = False
        """Whether the user is at the prompt."""
        self._complete = complete
        self._found: Sequence[str] = ()
        self._prompt = ""
        self._readline = _readline() if screen.is_terminal else None
        if self._readline is not None:
            self._set_up(self._readline)

    def read(self) -> Entry:
        """EOFError: nothing comes any more. KeyboardInterrupt: Ctrl-C; what was typed is gone."""
        self.is_reading = True
        entry = self._entry()
        self.is_reading = False
        return entry

    def confirm(self, question: str) -> bool:
        """Asks the person at the terminal; False where nobody sits there."""
        if not self.screen.is_terminal:
            return False
        return self._line(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    def _entry(self) -> Entry:
        line = self._line(PROMPT)
        if line.lstrip().startswith(QUOTES):
            return Entry(self._block(line.lstrip().removeprefix(QUOTES)), False)
        said = []
        while line.endswith("\\"):
            said.append(line.removesuffix("\\"))
            try:
                line = self._line(MORE)
            except EOFError:
                line = ""
        text = "\n".join([*said, line]).strip()
        return Entry(text, text.startswith("/") and "\n" not in text)

    def _block(self, line: str) -> str:
        said = []
        while not line.rstrip().endswith(QUOTES):
            said.append(line)
            try:
                line = self._line(MORE)
            except EOFError:
                line = QUOTES
        return "\n".join([*said, line.rstrip().removesuffix(QUOTES)]).strip()

    def _line(self, prompt: str) -> str:
        if not self.screen.is_terminal:
            return input("")
        self._prompt = self.screen.styled(prompt, "prompt")
        shown = ESCAPES.sub("\x01\\1\x02", self._prompt) if self._readline is not None else self._prompt
        return input(shown)

    def _set_up(self, readline: ModuleType) -> None:
        readline.set_completer_delims("")
        readline.set_completer(self._candidate)
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
            return
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.set_completion_display_matches_hook(self._show)

    def _candidate(self, line: str, number: int) -> str | None:
        if number == 0:
            self._found = self._complete(line)
        return self._found[number] if number < len(self._found) else None

    def _show(self, line: str, found: Sequence[str], longest: int) -> None:
        """What the line can become: only the last name of each, and then the prompt and the line again."""
        assert self._readline is not None
        names = [re.split(r"(?<!\\) |(?<=.)/(?=.)", each.rstrip())[-1] for each in found]
        self.screen.line("\n" + "  ".join(names[:SHOWN]) + ("  …" if len(names) > SHOWN else ""))
        print(f"{self._prompt}{self._readline.get_line_buffer()}", end="", flush=True)


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # not on Windows
        return None
    return readline
