"""How numbers are written in every table, page and terminal: one unit for one kind of number.

Shares are percent with one decimal and their differences points; scores of ten have two decimals, times are ratios.
"""

from __future__ import annotations

from safevlm.evaluation.metrics.measures import Unit
from safevlm.evaluation.metrics.rates import Bounds, Rate

UNITS: dict[Unit, tuple[float, str, str]] = {
    "share": (100, ".1f", " %"),
    "ten": (10, ".2f", ""),
    "times": (1, ".2f", " ×"),
}
"""Factor, format, and what follows the number."""


def cell(unit: Unit, value: Rate) -> str:
    """One cell in words: `55.1 % [47.7, 62.2] n 178, 122 unscored: 32.7 to 73.3 %`."""
    if value.value is None:
        return f"– ({unscored(unit, value)})" if value.unscored else "–"
    told = f"{number(unit, value.value)} {interval(unit, value)} n {value.n}"
    return f"{told}, {unscored(unit, value)}" if value.unscored else told


def unscored(unit: Unit, value: Rate) -> str:
    """`122 unscored: 32.7 to 73.3 %`, its worst cases; without them where a file of before does not tell."""
    told = f"{value.unscored} unscored"
    return told if value.bounds is None else f"{told}: {between(unit, value.bounds)}"


def between(unit: Unit, bounds: Bounds) -> str:
    """`32.7 to 73.3 %`."""
    factor, form, tail = UNITS[unit]
    low, high = (f"{factor * end:{form}}" for end in bounds)
    return f"{low} to {high}{tail}"


def number(unit: Unit, value: float) -> str:
    """`1.04 ×` for the time, `3.4 %` for shares, `8.26` for scores of ten."""
    factor, form, tail = UNITS[unit]
    return f"{factor * value:{form}}{tail}"


def interval(unit: Unit, value: Rate) -> str:
    """`[2.1, 5.5]`; empty when there is none."""
    if value.low is None or value.high is None:
        return ""
    factor, form, _ = UNITS[unit]
    return f"[{factor * value.low:{form}}, {factor * value.high:{form}}]"


def points(unit: Unit, value: float) -> str:
    """A difference: `-25.0` points of percent, `+0.31` of ten."""
    factor, form, _ = UNITS[unit]
    return f"{factor * value:+{form}}"
