"""What the conversation writes: in colours on a terminal, as plain text elsewhere and with NO_COLOR.

Answers come from a model that reads other people's images, or from a server: on a terminal their control characters
are shown as `\ufffd`, so that none of them moves the cursor, sets a title or reads the clipboard.
"""

from __future__ import annotations

import os
import re
import sys

STYLES = {"prompt": "1;36", "note": "2", "error": "31", "refused": "33", "title": "1"}
"""SGR numbers of a terminal."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and line feed; with them the marks that turn the direction of writing."""


class Screen:
    """Standard output."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        """Whether a person sits there."""
        is_dumb = os.environ.get("TERM", "") in ("", "dumb")
        self.is_coloured = sys.stdout.isatty() and not is_dumb and not os.environ.get("NO_COLOR")

    def write(self, text: str, style: str = "") -> None:
        """Text without a line break at its end, at once."""
        shown = CONTROL.sub("\ufffd", text.replace("\r", "")) if sys.stdout.isatty() else text
        print(self.styled(shown, style), end="", flush=True)

    def line(self, text: str = "", style: str = "") -> None:
        self.write(text, style)
        print(flush=True)

    def note(self, text: str) -> None:
        """For the person at a terminal; it is no part of what was said."""
        if self.is_terminal:
            self.line(text, "note")

    def error(self, error: BaseException) -> None:
        """In one line; the conversation goes on."""
        said = " ".join(str(error).split()) or type(error).__name__
        self.line(f"error: {said}", "error")

    def styled(self, text: str, style: str) -> str:
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style and text and self.is_coloured else text
