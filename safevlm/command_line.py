"""The parser of all commands: paths are expanded, and numbers are in their range; what is not is wrong usage, exit 2.

parser = CommandParser()
parser.add_argument("--out", metavar="DIR")
parser.add_argument("--limit", type=number(int, least=1), metavar="N")
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safevlm.paths import expanded, expanded_path
from safevlm.ranges import Range
from safevlm.usage import UsageError

TAKES = ("store", "append", "extend")
"""What argparse calls the flags that are followed by a value."""
WORDS = ("TEXT", "URL", "COMMAND", "ANALYSIS")
"""Flags of these metavars hold words, in which a `$` is a `$`; every other text may be a path."""


class CommandParser(argparse.ArgumentParser):
    """Every text is taken for a path that may hold `~` and variables, unless its metavar is one of WORDS.

    A flag is given by its whole name: what is misspelt is no short form of another flag.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        kind = options.get("type")
        takes_text = options.get("action", "store") in TAKES and kind in (None, str, Path)
        if takes_text and options.get("metavar") not in WORDS:
            options["type"] = _told(expanded_path if kind is Path else expanded)
        return super().add_argument(*names, **options)


def number(kind: Callable[[str], float], **ends: Any) -> Callable[[str], float]:
    """A type of a flag: `number(float, above=0, below=1)`; the ends are those of `Range`."""
    allowed = Range(**ends)

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed.allows(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole ' if kind is int else 'a '}{allowed.text}")
        return value

    return read


COUNT = number(int, least=1)
AMOUNT = number(int, least=0)
SEED = number(int, least=0, below=2**32)


def _told(expand: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return expand(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read
