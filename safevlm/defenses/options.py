"""Settings of a defense from a YAML file: its keys are the fields of a frozen dataclass, which checks the values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import yaml

Options = TypeVar("Options")


def read_options(kind: type[Options], path: Path | None) -> Options:
    """The file's keys over the defaults; no file: the defaults. ValueError names the file and the key."""
    if path is None:
        return kind()
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: no YAML file: {error}") from error
    choices = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    table = {} if table is None else table
    if not isinstance(table, dict):
        raise ValueError(f"{path}: not a table of {', '.join(choices)}")
    unknown = [key for key in table if key not in choices]
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; one of {choices}")
    try:
        return kind(**{key: _frozen(value) for key, value in table.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_number(key: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """ValueError when a value is no number from `low` to `high`; a truth value is none."""
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise ValueError(f"{key}: {value!r} is not {'a whole number' if whole else 'a number'} from {low} to {high}")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
