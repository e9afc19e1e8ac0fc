"""What comes in by the terminal and goes out to it, whatever its encoding: none of it ends in a traceback.

Bytes of standard input that are no text stay in the line as half characters, which a request refuses by name;
characters that the terminal cannot show are written as `\\u2026`. Words of the command line must be text.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from safevlm.files.text import half_character


def prepare() -> None:
    """Sets how standard input, output and error treat what their encoding cannot say."""
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=errors)


def unreadable(words: Sequence[str]) -> str:
    """What is wrong with a command line that holds bytes which are no text; empty where it is fine."""
    for word in words:
        if half_character(word):
            return f"argument {ascii(word)} holds bytes that are no text here; write it in UTF-8"
    return ""
