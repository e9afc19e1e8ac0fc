"""`safevlm eval …` from inside a test."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from safevlm.__main__ import main as safevlm
from safevlm.__main__ import parser_for


def main(words: Sequence[str]) -> int:
    """Runs `safevlm eval WORDS`; → its exit code."""
    return safevlm(["eval", *words])


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The flags of `safevlm eval WORDS`; wrong usage ends the test."""
    return parser_for("eval").parse_args(["eval", *words])
