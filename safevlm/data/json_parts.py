"""Parts of a JSONL file: whole lines that a process of its own may read, with the places that they have in the file."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

CHUNK = 1 << 20


class Part(NamedTuple):
    """Some whole lines of a JSONL file."""

    start: int
    """Bytes from the beginning of the file."""
    end: int
    first_line: int


def part_lines(path: Path, part: Part) -> Iterator[tuple[str, bytes]]:
    """(place, line) of every line, the file's byte order mark left out."""
    name = str(path)
    with io.BufferedReader(_PartOfFile(path, part), CHUNK) as lines:
        for number, line in enumerate(lines, start=part.first_line):
            yield f"{name}:{number}", line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def parts_of(path: Path, count: int) -> list[Part]:
    """A JSONL file in about equal parts, in order; none where it is a list, or its lines end in unusual ways."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
            return []
        parts, start, line = [], 0, 1
        for number in range(1, count + 1):
            file.seek(size * number // count)
            file.readline()
            end = min(file.tell(), size) if number < count else size
            if start < end:
                parts.append(Part(start, end, line))
                lines = _count_lines(file, start, end)
                if lines is None:
                    return []
                start, line = end, line + lines
    return parts


def _count_lines(file: BinaryIO, start: int, end: int) -> int | None:
    """None: some end in a carriage return alone, which text mode takes for a line's end too."""
    file.seek(start)
    lines, last = 0, b""
    while start < end:
        block = file.read(min(CHUNK, end - start))
        lines += block.count(b"\n")
        if last or b"\r" in block:
            ended = (last + block).count(b"\r") - block.endswith(b"\r")
            if ended != (last + block).count(b"\r\n"):
                return None
            last = b"\r" if block.endswith(b"\r") else b""
        start += len(block)
    return lines


class _PartOfFile(io.FileIO):
    """A file that begins and ends with its part."""

    def __init__(self, path: Path, part: Part) -> None:
        super().__init__(path)
        self._left = part.end - part.start
        self.seek(part.start)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        count = super().readinto(view) or 0
        self._left -= count
        return count
