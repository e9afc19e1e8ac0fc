"""Rows of a user's own table of questions, JSONL or CSV, each with its `file:line`.

Whatever the parsers of Python would pass over in silence is an error here: a column or key that stands twice, bytes
that are not UTF-8, half a character (a lone surrogate), which no file of replies could hold.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from safevlm.files import json_lines, undecodable_line

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
        raise ValueError(f"{path}:{undecodable_line(path)}: not UTF-8; save the file as UTF-8") from error


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
    for read, (where, row) in enumerate(json_lines(path), start=1):
        if where != f"{path}:{read}":
            raise ValueError(f"{path}:{read}: an empty line; remove it")
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row must be an object, not {type(row).__name__}")
        yield where, row


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
