"""Rows of a user's own table of questions, JSONL or CSV, each with its `file:line`.

Whatever the parsers of Python would pass over in silence is an error here: a column or key that stands twice, bytes
that are not UTF-8, half a character (a lone surrogate), which no file of replies could hold.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

TABLES = (".jsonl", ".csv")
UNSUPPORTED = ("system", "history")
"""Columns that would change what is asked, and that no suite file can pass on."""
LIKENESS = 0.75
"""`difflib`'s ratio from which a name is taken for a misspelt one; that of `img` and `image`."""


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every row. ValueError: not UTF-8, malformed, a repeated column or key, a lone surrogate."""
    read = _json_rows if path.suffix == ".jsonl" else _csv_rows
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{_undecodable_line(path)}: not UTF-8; save the file as UTF-8") from error


def check_columns(where: str, names: Iterable[str], columns: Iterable[str]) -> None:
    """ValueError: a column that no field reads and that looks like one that a field does read, or is unsupported.

    `columns`: what the fields read. Other columns are the user's own business. A column that merely resembles one which
    the row has too is no slip.
    """
    if slip := _slip(tuple(names), tuple(columns)):
        raise ValueError(f"{where}: {slip}")


@lru_cache(maxsize=256)  # most rows of a table have the same columns
def _slip(names: tuple[str, ...], columns: tuple[str, ...]) -> str:
    for name in names:
        if name in columns:
            continue
        if _plain(name) in UNSUPPORTED:
            return (
                f"column {name!r}: suites of your own do not support {_plain(name)}; take the column out, or write a "
                "suite in Python (package.module:SUITE)"
            )
        same = [column for column in columns if _plain(column) == _plain(name)]
        absent = [column for column in columns if column not in names]
        meant = same or difflib.get_close_matches(_plain(name), absent, n=1, cutoff=LIKENESS)
        if meant:
            return f"no field reads column {name!r}; did you mean {meant[0]!r}? Rename it, or name it under `fields`"
    return ""


def _plain(name: str) -> str:
    return name.strip().casefold()


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                raise ValueError(f"{where}: an empty line; remove it")
            try:
                row = json.loads(line, object_pairs_hook=_unique)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg})") from error
            except _RepeatedKeyError as error:
                raise ValueError(f"{where}: key {error.args[0]!r} stands twice in this row; leave one out") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a row must be an object, not {type(row).__name__}")
            _check_characters(where, row)
            yield where, row


class _RepeatedKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _RepeatedKeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return table


def _check_characters(where: str, row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: {name!r} holds half a character (a lone surrogate, as of an emoji that was cut in two); "
                "write it whole, or take it out"
            ) from error


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            header = Counter(table.fieldnames or ())
            repeated = [name for name, count in header.items() if count > 1]
            if repeated:
                raise ValueError(f"{path}:{table.line_num}: column {repeated[0]!r} stands twice; rename or remove one")
            for row in table:
                where = f"{path}:{table.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: another number of cells than the header has; quote cells with commas")
                yield where, dict(row)
        except csv.Error as error:
            raise ValueError(f"{path}:{table.line_num}: not CSV: {error}") from error


def _undecodable_line(path: Path) -> int:
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return number
    return 1
