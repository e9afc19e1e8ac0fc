"""The file of `--keys`: who may ask, and by which policy. Keys stand in it as hashes.

ward-a:
  sha256: 0b14d501a594442a01c6859541bcb3e8164d183d32937b851835442f69d5c94e
  policy: strict.yaml   # beside this file; where it is not given, that of --policy
  monitor: false        # where it is not given, as --monitor says
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.files import FileError, read_text, read_yaml

SHA256 = re.compile("[0-9a-f]{64}")
MAKE_ONE = 'printf %s "$KEY" | sha256sum'


@dataclass(frozen=True)
class KeyRow:
    """What is said of one key."""

    sha256: Any
    """Of the key; 64 hexadecimal digits. Whatever else stands here may be a key in clear and is never repeated."""
    policy: str = ""
    """A file, from the folder of this one; empty: the server's own policy."""
    monitor: bool | None = None
    """Whether nothing is acted on; None: as the server does."""

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is no SHA-256 of 64 small hexadecimal digits; make it by {MAKE_ONE}")


def read_keys(path: Path) -> dict[str, KeyRow]:
    """Rows by the key's name. FileError names line and key: a wrong row, no row, or one key under two names."""
    rows: dict[str, KeyRow] = read_yaml(path, dict[str, KeyRow])
    if not rows:
        raise FileError(f"{path}: holds no key, so nobody could ask; write `name: {{sha256: …}}`")
    names: dict[str, str] = {}
    for name, row in rows.items():
        if row.sha256 in names:
            raise FileError(f"{path}: {name} is the same key as {names[row.sha256]}; leave one out")
        names[row.sha256] = name
    return rows


def read_digests(path: Path) -> frozenset[str]:
    """The file of `--allow-images`: SHA-256 of image files, one a line; `#` begins a comment. FileError names the line.

    A line may be one of `sha256sum`, with the file's name behind.
    """
    digests = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.partition("#")[0].split(maxsplit=1)
        if not words:
            continue
        digest = words[0].lower()
        if not SHA256.fullmatch(digest):
            raise FileError(f"{path}:{number}: no SHA-256 of 64 hexadecimal digits; make it by sha256sum IMAGE")
        digests.add(digest)
    return frozenset(digests)
