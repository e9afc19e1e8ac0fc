"""One file per command of `safevlm`: its one-line TEXT, its flags, and what it runs. Heavy imports come late.

Exit codes: 0 fine, 1 a finding or failed check, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safevlm.engine import Engine

OK, FINDING, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
"""What a user can mend: shown as one line, without a traceback. Anything else is a bug and shows where it is."""

LONGEST = 1_000
"""Characters of an error."""


def add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="DIR", help="folder of the checkpoint's base model, if it has moved")


def load_engine(options: argparse.Namespace, lm: bool = True) -> Engine:
    """The model that the flags of `chat` and `serve` name, behind their defense. `lm`: as `Engine.load`."""
    from safevlm.engine import Engine

    return Engine.load(
        options.model,
        defense=options.defense,
        policy=options.policy,
        device=options.device,
        base=options.base,
        quantize=options.quantize,
        lm=lm,
    )


def print_error(error: BaseException) -> None:
    """The error as one line on stderr, below whatever progress bar was left open."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()
    print(f"error: {one_line(error)}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; of a very long one both ends, where the place and the fix stand."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
