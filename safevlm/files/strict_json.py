"""JSON without its traps: a repeated key, NaN, a number without end and half a character are errors with their line.

Python's parser keeps the last of two equal keys, takes NaN and Infinity, which no other JSON has, and reads `1e999` as
infinity. What it says of depth is a RecursionError.
"""

from __future__ import annotations

import json
import math
import re
from json.decoder import WHITESPACE, scanstring  # type: ignore[attr-defined]  # typeshed leaves them out
from typing import Any

from safevlm.files.text import DEPTH, FileError, half_character, short

ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How a surrogate is written in JSON; two in a row are a whole character."""


class StrictError(ValueError):
    """What `DECODER` raises for JSON that Python would take; it does not know the place, only the words there."""

    def __init__(self, message: str, words: str = "") -> None:
        super().__init__(message)
        self.words = words


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise StrictError(f"key {short(twice)} stands twice in one table; leave one out", json.dumps(twice))
    return table


def _not_finite(word: str) -> float:
    raise StrictError(f"{word[:40]} is not a finite number", word)


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _not_finite(digits)


def _whole(digits: str) -> int:
    if len(digits) > 1000:
        raise StrictError(f"a number of {len(digits)} digits is none that anything here can hold", digits)
    return int(digits)


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite, parse_int=_whole)
FAULTS = (StrictError, RecursionError)
"""What `DECODER` raises beside JSONDecodeError."""


def load_json(text: str, where: str) -> Any:
    """What one JSON document holds. FileError: `where:line: what is wrong`."""
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        raise FileError(f"{where}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except FAULTS as error:
        raise FileError(f"{where}:{_fault_line(text, error)}: {told(error)}") from error


def decode(text: str) -> Any:
    """The value of a whole text. JSONDecodeError, or one of `FAULTS`."""
    try:
        value, end = DECODER.scan_once(text, 0)  # type: ignore[attr-defined]  # typeshed leaves it out
    except (StopIteration, json.JSONDecodeError):  # white space in front of it, or what is wrong
        value, end = DECODER.decode(text), len(text)
    if text[end:] not in ("", "\n"):
        value = DECODER.decode(text)
    check_value(text, value)
    return value


def told(error: Exception) -> str:
    return f"lists and tables nested more than {DEPTH} deep" if isinstance(error, RecursionError) else str(error)


def check_value(text: str, value: Any) -> None:
    """StrictError, RecursionError: half a character in the text that gave this value, or nested too deep."""
    if text.count("[") + text.count("{") > DEPTH and not is_flat(value):
        raise RecursionError
    if "\\u" in text and ESCAPED_HALF.search(text) and (half := half_character(json.dumps(value, ensure_ascii=False))):
        raise StrictError(f"{half} is half a character (as of an emoji that was cut in two); write it whole", half)


def is_flat(value: Any, depth: int = DEPTH) -> bool:
    """Whether lists and tables are nested no deeper than this."""
    layer = [value]
    for _ in range(depth + 1):
        layer = [
            part
            for one in layer
            if isinstance(one, list | dict)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not layer:
            return True
    return False


def line_at(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line of a key or of an item in a JSON text that can be read; None where it does not stand there."""
    at = _skip(text, 0)
    for step in path:
        found = _find(text, at, step)
        if found is None:
            return None
        at = found
    return text.count("\n", 0, at) + 1


def _find(text: str, at: int, step: str | int) -> int | None:
    """Where the value of a key of the table at `at`, or an item of the list there, begins."""
    opened, index = text[at : at + 1], 0
    if opened not in ("{", "[") or isinstance(step, str) != (opened == "{"):
        return None
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        name: str | int = index
        if opened == "{":
            name, at = scanstring(text, at + 1)
            at = _skip(text, _skip(text, at) + 1)
        if name == step:
            return at
        _, at = json.JSONDecoder().raw_decode(text, at)
        at, index = _skip(text, at), index + 1
        if text[at] == ",":
            at = _skip(text, at + 1)
    return None


def _skip(text: str, at: int) -> int:
    return int(WHITESPACE.match(text, at).end())


def _fault_line(text: str, error: Exception) -> int:
    """The line of what the strict decoder complained about, which knows the words but not where they stand.

    It complains when a table closes; so the shortest text of whole lines that has the fault is looked for, by halves,
    and in it the last place with the words.
    """
    lines = text.split("\n")
    low, high = 1, len(lines)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_faulty("\n".join(lines[:middle])) else (middle + 1, high)
    words = getattr(error, "words", "")
    before = "\n".join(lines[:low])
    found = before.rfind(words) if words else -1
    return before.count("\n", 0, found) + 1 if found >= 0 else low


def _is_faulty(text: str) -> bool:
    try:
        DECODER.decode(text)
    except json.JSONDecodeError:
        return False
    except FAULTS:
        return True
    return False
