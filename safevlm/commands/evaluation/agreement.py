"""`safevlm eval agreement`."""

from __future__ import annotations

import argparse

from safevlm.commands import OK
from safevlm.evaluation.metrics.agreement import agreement, told

TEXT = "how far two judges agree about the same replies"
DESCRIPTION = "Share and Cohen's kappa per group; A and B are folders with scores.jsonl of one run."


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", metavar="A", help="folder with scores")
    command.add_argument("b", metavar="B", help="folder with another judge's scores")
    command.add_argument("--out", metavar="FILE", help="write the table as JSON too, with the ids that differ")
    command.add_argument(
        "--more", nargs=2, action="append", default=[], metavar=("A", "B"), help="judgings of a further run; repeat"
    )


def run(options: argparse.Namespace) -> int:
    print(told(agreement(options.a, options.b, options.out, options.more, options.command_line)))
    return OK
