"""`a+b=FILE` → members. A `+` in a file's name is no border unless the name of a defense follows it.

A name is one of the table's, or `package.module:Attribute`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from safevlm.plugins import REFERENCE, is_reference
from safevlm.usage import UsageError


@dataclass(frozen=True)
class Named:
    """One defense as it was named."""

    name: str
    file: Path | None = None
    """What stood behind `=`."""


def parse(text: str, known: Collection[str]) -> list[Named]:
    """Members in order. ValueError names the first that is unknown, and the choices."""
    names = "|".join([REFERENCE, *(re.escape(name) for name in sorted(known, key=len, reverse=True))])
    members = []
    for part in re.split(rf"\+(?=(?:{names})(?:[=+]|$))", text) if "=" in text else text.split("+"):
        name, equals, file = part.partition("=")
        if name not in known and not is_reference(name):
            raise UsageError(
                f"unknown defense {name!r}; one of {[*known, 'auto']}, package.module:Class of your own, or several "
                "joined by +"
            )
        if equals and not file:
            raise ValueError(f"defense {part!r}: no file behind the =")
        members.append(Named(name, Path(file) if file else None))
    return members
