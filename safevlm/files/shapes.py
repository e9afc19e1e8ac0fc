"""Values held against a dataclass (or any type pydantic knows): types, unknown and missing keys, all told by key path.

Types are strict: `"5"` is no number, 1 is no truth value, 1.5 no whole number; NaN is nowhere. What a dataclass checks
itself in `__post_init__`, by a ValueError, is told with the key path too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from safevlm.files.text import FileError, short

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import ErrorDetails

Shape = TypeVar("Shape")
Path = tuple[str | int, ...]
"""Keys and positions, from the outside in."""
LineAt = Callable[[Path], int | None]


def checked(
    shape: type[Shape], value: object, where: str, line_at: LineAt | None = None, *, more: bool = False
) -> Shape:
    """The value as a `shape`. FileError: `where:line: key.path: what is wrong; what is allowed`, of the first fault.

    `value`: what JSON can hold. `line_at`: the line of a key path, where there is a file to look it up. `more`: keys
    that a shape (a TypedDict, then) does not name are kept; for records that a later version may write more into.
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"{where}: {short(value)} is not made of tables, lists, texts and numbers: {error}") from error
    if path := _not_finite(value):
        raise FileError(f"{where}: {dotted(path)}: is not a finite number")
    if importlib.util.find_spec("pydantic") is None:
        return _as_it_stands(shape, value, where)
    from pydantic import ValidationError  # late: who reads no file of a user's needs none

    try:
        return _adapter(cast("Any", shape)).validate_json(text, strict=True, extra="allow" if more else "forbid")
    except ValidationError as error:
        raise FileError(_told(shape, value, error, where, line_at)) from error


def _as_it_stands(shape: type[Shape], value: object, where: str) -> Shape:
    """Without pydantic, which only the bare machine of scripts/gpu_check.sh lacks: names alone are checked.

    It reads what it wrote a minute before, and no file of a user's.
    """
    if not isinstance(value, dict):
        raise FileError(f"{where}: {short(value)} is not a table")
    try:
        return cast("Shape", _built(shape, value))
    except TypeError as error:
        raise FileError(f"{where}: {error}") from error


def _built(kind: Any, value: Any) -> Any:
    """Tables as the dataclasses that `kind` names, lists and tuples of them too; all else as it is."""
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        return cast("Any", kind)(**{name: _built(hints.get(name), each) for name, each in value.items()})
    if isinstance(value, list) and get_args(kind):
        items = [_built(get_args(kind)[0], each) for each in value]
        return tuple(items) if get_origin(kind) is tuple else items
    return value


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _told(shape: Any, value: object, error: ValidationError, where: str, line_at: LineAt | None) -> str:
    faults = error.errors(include_url=False, include_context=True)
    deepest = max(len(_real(fault["loc"], value)) for fault in faults)
    fault = next(one for one in faults if len(_real(one["loc"], value)) == deepest)  # of a union's ways, the nearest
    path = _real(fault["loc"], value)
    line = line_at(path) if line_at else None
    place = where if line is None else f"{where}:{line}"
    return f"{place}: {f'{dotted(path)}: ' if path else ''}{_what(fault, path, shape)}"


def _not_finite(value: object, path: Path = ()) -> Path | None:
    """Where a number is infinite or none; what came out of our own parsers has no such place."""
    if isinstance(value, float) and not math.isfinite(value):
        return path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, part in pairs if (found := _not_finite(part, (*path, key)))), None)


def dotted(path: Path) -> str:
    """`sections.a heading.rows[3]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _real(loc: tuple[str | int, ...], value: object) -> Path:
    """pydantic's place without the steps that are no keys of the value: the way of a union, the key of a table."""
    path: list[str | int] = []
    for step in loc:
        if isinstance(value, Mapping):
            names = {str(name): name for name in value}
            if str(step) not in names:
                continue
            value = value[names[str(step)]]
        elif isinstance(value, list | tuple) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        path.append(step)
    return tuple(path)


KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "dataclass_type": "a table",
    "dataclass_exact_type": "a table",
    "model_type": "a table",
    "path_type": "a path",
    "none_required": "null",
    "is_instance_of": "what belongs here",
}


def _what(fault: ErrorDetails, path: Path, shape: Any) -> str:
    kind, context, given = fault["type"], fault.get("ctx", {}), short(fault["input"])
    if kind == "value_error":
        return str(context.get("error", fault["msg"]))
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"lacks {str(fault['loc'][-1])!r}"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _keys(shape, path[:-1])
        return f"unknown key {short(path[-1])}{f'; one of {known}' if known else '; leave it out'}"
    if kind in ("literal_error", "enum"):
        return f"unknown {given}; one of {context['expected']}"
    if kind in KINDS:
        return f"{given} is not {KINDS[kind]}"
    return f"{given}: {fault['msg'].removeprefix('Input ')}"


def _keys(shape: Any, path: Path) -> list[str]:
    """The keys of the table at this path, where a dataclass says them."""
    for step in path:
        shape = _inside(shape, step)
    table = _dataclass(shape)
    return [field.name for field in dataclasses.fields(table)] if table else []


def _inside(shape: Any, step: str | int) -> Any:
    if table := _dataclass(shape):
        return get_type_hints(table).get(str(step))
    ways = get_args(shape) if get_origin(shape) in (Union, UnionType) else (shape,)
    held = next((way for way in ways if get_args(way)), None)
    return get_args(held)[0 if isinstance(step, int) else -1] if held else None


def _dataclass(shape: Any) -> Any:
    ways = get_args(shape) if get_origin(shape) in (Union, UnionType) else (shape,)
    return next((way for way in ways if isinstance(way, type) and dataclasses.is_dataclass(way)), None)
