"""Tables of downloads: CSV, JSON objects, and text that must be there. Errors name the file, the row and the fix."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safevlm.files import read_json

LARGEST = 512 << 20
"""Bytes of a table of a download."""


class AbsentError(FileNotFoundError):
    """The suite's files are not there; the message says what was looked for."""


def all_of(folder: Path, *names: str) -> list[Path]:
    """All files of the first of these names (globs work) that the folder has any of; AbsentError names them all."""
    for name in names:
        found = sorted(folder.glob(name))
        if found:
            return found
    raise AbsentError(f"{folder} has no {' or '.join(names)}")


def first_of(folder: Path, *names: str) -> Path:
    return all_of(folder, *names)[0]


def csv_rows(path: Path, needed: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of a CSV file with a header; ValueError when a column is missing.

    A row with more cells than the header, or fewer, has no texts, since nobody knows which is which; its place says so.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        lacking = sorted(set(needed) - set(table.fieldnames or ()))
        if lacking:
            raise ValueError(f"{path}: lacks the columns {lacking}; it has {table.fieldnames}")
        for row in table:
            place = f"{path}:{table.line_num}"
            if None in row or any(row[name] is None for name in needed):
                place = f"{place}: another number of cells than the header has; download the file again"
                row = dict.fromkeys(table.fieldnames or (), "")
            yield place, row


def json_object(path: Path) -> dict[str, Any]:
    table = json_table(path)
    if not isinstance(table, dict):
        raise ValueError(f"{path}: must be an object, not {type(table).__name__}")
    return table


def json_table(path: Path) -> Any:
    return read_json(path, limit=LARGEST)


def list_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a JSON list; ValueError: it is none."""
    table = json_table(path)
    if not isinstance(table, list):
        raise ValueError(f"{path}: must be a list of rows, not {type(table).__name__}")
    return ((f"{path}[{number}]", row) for number, row in enumerate(table))


def object_rows(path: Path) -> Iterator[tuple[str, tuple[str, Any]]]:
    """(place, (key, row)) of a JSON object of rows; ValueError: it is none."""
    return ((f"{path}[{key!r}]", (key, row)) for key, row in json_object(path).items())


def text(row: Any, name: str, place: str) -> str:
    """A text that may not be empty."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        has = sorted(map(str, row)) if isinstance(row, Mapping) else repr(row)
        raise ValueError(f"{place}: no text {name!r} in this row; it has {has}")
    return value


def word(row: Any, name: str, place: str) -> str:
    """A text or a whole number, as text; ids come as both."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        has = sorted(map(str, row)) if isinstance(row, Mapping) else repr(row)
        raise ValueError(f"{place}: no {name!r} in this row; it has {has}")
    return str(value).strip()
