"""Settings of a defense from a YAML file: its keys are the fields of a frozen dataclass, which checks the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from safevlm.files import read_yaml

Options = TypeVar("Options")


def read_options(kind: type[Options], path: Path | None) -> Options:
    """The file's keys over the defaults; no file: the defaults. ValueError names the file and the key."""
    if path is None:
        return kind()
    return read_yaml(path, kind)


def check_number(key: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """ValueError when a value is no number from `low` to `high`; a truth value is none."""
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise ValueError(f"{key}: {value!r} is not {'a whole number' if whole else 'a number'} from {low} to {high}")
