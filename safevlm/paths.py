"""`~` and `$NAME` in the paths that a user writes: flags, recipes, mixes and tables, all through `expanded`.

Only `$NAME` and `${NAME}` are variables; any other `$` belongs to the file's name, and so does every one in the name of
a file that is there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from safevlm.usage import UsageError

VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
HOME = re.compile(r"(^|=)(~[^/=]*)")
"""A home folder begins the text, or what stands behind a name: `NAME=~/runs`."""


def expanded(text: str) -> str:
    """The text with home folders and variables put in. UsageError names a variable that is not set."""
    if "$" not in text and "~" not in text or os.path.lexists(text):
        return text
    return VARIABLE.sub(_value, HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), text))


def _value(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if name not in os.environ:
        raise UsageError(f"{found.string}: the variable ${name} is not set; set it, or write the path without it")
    return os.environ[name]


def expanded_path(path: str | Path, where: str = "") -> Path:
    """The same as a path; `where` begins the error: the place in the file that names it."""
    try:
        return Path(expanded(str(path)))
    except UsageError as error:
        raise UsageError(f"{where}: {error}" if where else str(error)) from error


def expand_fields(settings: Any, section: str, *names: str) -> None:
    """Paths of a frozen dataclass, or lists of them, put in their places. UsageError begins with `section.name`."""
    for name in names:
        value = getattr(settings, name)
        try:
            ready = [expanded(one) for one in value] if isinstance(value, list) else value and expanded(value)
        except UsageError as error:
            raise UsageError(f"{section}.{name}: {error}") from error
        object.__setattr__(settings, name, ready)
