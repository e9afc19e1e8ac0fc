"""Wrong usage, found behind the parser: exit code 2, as a parser's own errors have."""

from __future__ import annotations


class UsageError(ValueError):
    """Flags or a recipe's values that cannot be, alone or beside each other; the message names them and the fix."""
