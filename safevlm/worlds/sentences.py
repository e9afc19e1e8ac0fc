"""How sentences of a drawn world are put together."""

from __future__ import annotations

from collections.abc import Sequence


def listed(parts: Sequence[str]) -> str:
    """`a cup`, `a cup and a ball`, `a cup, a ball and a tree`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
