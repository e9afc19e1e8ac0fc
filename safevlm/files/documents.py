"""Whole files: read, parsed strictly, and held against a shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

from safevlm.files import strict_json, strict_yaml
from safevlm.files.shapes import checked
from safevlm.files.text import LIMIT, MIB, FileError, read_text, size

Shape = TypeVar("Shape")
LINE_LIMIT = 64 * MIB
"""Bytes of one row of JSONL."""


@overload
def read_yaml(path: str | Path) -> Any: ...
@overload
def read_yaml(path: str | Path, shape: type[Shape]) -> Shape: ...
def read_yaml(path: str | Path, shape: Any = None) -> Any:
    """A YAML file, as `shape` where one is given. FileError: `path:line: key.path: what is wrong`. OSError."""
    text = read_text(path, strict_yaml.LIMIT)
    value = strict_yaml.load_yaml(text, str(path))
    if shape is None:
        return value
    table = {} if value is None else value  # a file of comments alone
    return checked(shape, table, str(path), partial(strict_yaml.line_at, text))


@overload
def read_json(path: str | Path, *, limit: int = LIMIT) -> Any: ...
@overload
def read_json(path: str | Path, shape: type[Shape], *, limit: int = LIMIT) -> Shape: ...
def read_json(path: str | Path, shape: Any = None, *, limit: int = LIMIT) -> Any:
    """A JSON file, as `shape` where one is given; the same errors. `limit`: bytes, for data that may be larger."""
    text = read_text(path, limit)
    value = strict_json.load_json(text, str(path))
    return value if shape is None else checked(shape, value, str(path), partial(strict_json.line_at, text))


def json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(`path:line`, value) of every line of JSONL that is not empty. FileError: as `read_json`, with the line."""
    with Path(path).open("rb") as lines:
        number = 0
        while line := lines.readline(LINE_LIMIT + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > LINE_LIMIT:
                raise FileError(f"{where}: a line of more than {size(LINE_LIMIT)}")
            if line.strip():
                yield where, json_line(line, where)


def json_line(content: bytes, where: str) -> Any:
    """The value of one line of JSONL. FileError, beginning with `where`."""
    try:
        return strict_json.decode(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise FileError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    except strict_json.FAULTS as error:
        raise FileError(f"{where}: {strict_json.told(error)}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{where}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
