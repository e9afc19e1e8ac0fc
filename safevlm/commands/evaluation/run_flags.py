"""Flags that name runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safevlm.usage import UsageError


def named_folders(runs: Sequence[str]) -> list[tuple[str, Path]]:
    """NAME=DIR, in the order given; a name may come several times. UsageError: another form."""
    pairs = []
    for run in runs:
        name, equals, folder = run.partition("=")
        if not (name and equals and folder):
            raise UsageError(f"--run: {run!r} is not NAME=DIR")
        pairs.append((name, Path(folder)))
    return pairs
