"""Texts with places to fill, `{topic}`: only names that are known, and nothing else that Python's braces can do."""

from __future__ import annotations

from collections.abc import Collection
from string import Formatter


def check_template(template: str, allowed: Collection[str], needed: Collection[str] = ()) -> None:
    """ValueError: an unknown or a missing place, a brace alone, a place that says how wide or by which attribute."""
    shown = ", ".join(f"{{{name}}}" for name in sorted(allowed))
    try:
        places = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ or }}}} for a brace, and {shown} for a place") from error
    for name, how, conversion in places:
        if name not in allowed or how or conversion:
            told = f"{name}{f'!{conversion}' if conversion else ''}{f':{how}' if how else ''}"
            raise ValueError(f"unknown {{{told}}}; only {shown}")
    missing = sorted(set(needed) - {name for name, _, _ in places})
    if missing:
        raise ValueError(f"{{{missing[0]}}} is missing")
