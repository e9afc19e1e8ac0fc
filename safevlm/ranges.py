"""What a setting may be, written beside its field, and one check of it for every way in: YAML, flags, `config.json`.

    lr: Annotated[float, Range(above=0)] = 1e-5
    train: Annotated[list[str], Filled()]

A class of settings calls `check(self, "optim")` in its `__post_init__`; `problems` says the same of values that are not
a class yet, with their whole keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Finite numbers between two ends, and perhaps some others. NaN is in no range."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    also: tuple[float, ...] = ()
    """Numbers outside of the ends that have a meaning of their own."""

    def allows(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return value in self.also or (self.least <= value <= self.most and self.above < value < self.below)

    @property
    def text(self) -> str:
        """`number above 0 and below 1`"""
        ends = (("above", self.above), ("at least", self.least), ("at most", self.most), ("below", self.below))
        told = " and ".join(f"{words} {end:g}" for words, end in ends if math.isfinite(end))
        return " or ".join([f"number {told}".rstrip(), *(f"{value:g}" for value in self.also)])

    def __str__(self) -> str:
        return f"a {self.text}"


@dataclass(frozen=True)
class Filled:
    """Texts and lists that are not empty."""

    def allows(self, value: object) -> bool:
        return bool(value)

    def __str__(self) -> str:
        return "not empty"


@dataclass(frozen=True)
class Choice:
    """One of some words; made from a field's `Literal`."""

    words: tuple[object, ...]

    def allows(self, value: object) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.words))


Rule = Range | Filled | Choice


@dataclass(frozen=True)
class Rules:
    """All rules of one field."""

    rules: tuple[Rule, ...]
    optional: bool
    """None is allowed."""

    def broken(self, key: str, value: object) -> Iterator[str]:
        if value is None and self.optional:
            return
        for rule in self.rules:
            if not rule.allows(value):
                yield f"{key}: {value!r} is out of range; {rule}" + (", or null" if self.optional else "")


Count = Annotated[int, Range(least=1)]
Amount = Annotated[int, Range(least=0)]
Weight = Annotated[float, Range(least=0)]


def check(settings: Any, section: str) -> None:
    """ValueError: a field of these settings that is out of its range, by `section.field`, and the range."""
    kind: type = type(settings)
    for name, rules in _rules(kind).items():
        for problem in rules.broken(f"{section}.{name}", getattr(settings, name)):
            raise ValueError(problem)


def problems(kind: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Everything that is out of its range in nested values of a class of settings, by whole keys."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if is_dataclass(hints.get(name)) and isinstance(value, Mapping):
            yield from problems(hints[name], value, f"{prefix}{name}.")
        elif name in hints:
            yield from _rules(kind)[name].broken(f"{prefix}{name}", value)


@cache
def _rules(kind: type) -> dict[str, Rules]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: Rules(tuple(_of(hints[field.name])), _optional(hints[field.name])) for field in fields(kind)}


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _of(hint: Any) -> Iterator[Rule]:
    """The rules of an annotation."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        yield from (mark for mark in marks if isinstance(mark, Range | Filled))
        yield from _of(inner)
    elif get_origin(hint) is Literal:
        yield Choice(get_args(hint))
    elif _optional(hint):
        (inner,) = (part for part in get_args(hint) if part is not type(None))
        yield from _of(inner)
