"""Lists of images that training leaves out, as `safevlm audit` writes them (`exclude.txt`): one path per line.

An absolute path is taken as it is; a relative one starts where the records' own image paths start. A line in double
quotes is a JSON string, for names with line breaks in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from safevlm.config import DataConfig
from safevlm.data.record_table import choose, image_paths
from safevlm.data.records import Record
from safevlm.files import FileError, load_json, read_text

LARGEST = 512 << 20
"""Bytes of a list."""


def exclude_images(records: Sequence[Record], data: DataConfig) -> tuple[Sequence[Record], int]:
    """The records none of whose images is listed in `data.exclude`, in order, and how many went.

    ValueError: a list that is missing or not UTF-8, lists that leave nothing, or lists of which no line names an image
    of the records, most likely because paths and folder do not fit.
    """
    if not data.exclude:
        return records, 0
    roots = [data.images] if data.images else [str(Path(file).parent) for file in data.train]
    listed = {path for name in data.exclude for path in _read(Path(name), roots)}
    clear = [listed.isdisjoint(map(_absolute, paths)) for paths in image_paths(records)]
    kept = choose(records, np.flatnonzero(clear))
    dropped = len(records) - len(kept)
    if listed and not dropped:
        shown = min(listed)
        raise ValueError(
            f"data.exclude: none of the {len(listed)} listed images belongs to a record (the first is {shown}); "
            "paths must be absolute, or start where the records' image paths start"
        )
    if records and not kept:
        raise ValueError(f"data.exclude: {', '.join(data.exclude)}: no record is left")
    return kept, dropped


def line_of(path: str) -> str:
    """A path as a line of such a list."""
    is_plain = path.isprintable() and path == path.strip() and not path.startswith('"')
    return (path if is_plain else json.dumps(path)) + "\n"


def _read(file: Path, roots: Sequence[str]) -> set[str]:
    try:
        lines = read_text(file, LARGEST).split("\n")
    except FileNotFoundError as error:
        raise ValueError(f"data.exclude: {file}: no such file") from error
    except FileError as error:
        raise ValueError(f"data.exclude: {error}") from error
    names = [_name(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return {_absolute(os.path.join(root, name)) for name in names for root in roots}


def _name(file: Path, number: int, line: str) -> str:
    name = load_json(line, f"data.exclude: {file}:{number}") if line.startswith('"') else line.strip()
    if not isinstance(name, str) or "\0" in name:
        raise ValueError(f"data.exclude: {file}:{number}: {name!r} is not the path of a file")
    return name


def _absolute(path: str | Path) -> str:
    """Links are resolved on both sides, so that a data folder may be reached by several names."""
    return os.path.realpath(path)
