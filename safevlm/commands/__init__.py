"""One file per command of `safevlm`: its one-line TEXT, its flags, and what it runs. Heavy imports come late.

Exit codes: 0 fine, 1 a finding or failed check, 2 wrong usage.
"""

from __future__ import annotations

import argparse

OK, FAILED = 0, 1


def add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="DIR", help="folder of the checkpoint's base model, if it has moved")
