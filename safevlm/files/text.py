"""A file's text: so much and no more, UTF-8 and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

MIB = 1 << 20
LIMIT = 32 * MIB
"""Bytes of a document that stands in memory as a whole."""
DEPTH = 64
"""Lists and tables within each other."""
SURROGATE = re.compile("[\ud800-\udfff]")


class FileError(ValueError):
    """A file that cannot be used; the message begins with its place and says what is wrong."""


def read_text(path: str | Path, limit: int = LIMIT) -> str:
    """A file as text, a byte order mark left out. FileError: too large, or not UTF-8. OSError."""
    with Path(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileError(f"{path}: larger than {size(limit)}, the most that such a file may have")
    return decoded(content, str(path))


def decoded(content: bytes, where: str) -> str:
    """Bytes as text. FileError: not UTF-8, with the line."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileError(f"{where}:{line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error


def undecodable_line(path: str | Path) -> int:
    """The first line that is not UTF-8; 1 where all are."""
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def half_character(text: str) -> str | None:
    """The first lone surrogate, as Python writes it: half an emoji that was cut in two. No UTF-8 file holds it."""
    found = SURROGATE.search(text)
    return None if found is None else ascii(found[0]).strip("'")


def size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // 1024} KiB"


def short(value: object, length: int = 80) -> str:
    """A value for a message, on one line and never longer than this."""
    text = repr(value[: 4 * length] if isinstance(value, str) else value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
