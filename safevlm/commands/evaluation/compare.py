"""`safevlm eval compare`."""

from __future__ import annotations

import argparse

from safevlm.command_line import SEED
from safevlm.commands import OK
from safevlm.evaluation.metrics.comparison import compare, markdown

TEXT = "two judged runs of the same questions, paired by id"
DESCRIPTION = "Differences with intervals and McNemar's p; A and B are folders of judged runs."


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", metavar="A", help="folder of a judged run")
    command.add_argument("b", metavar="B", help="folder of another one")
    command.add_argument("--out", metavar="FILE", help="write the comparison as JSON too, with all discordant ids")
    command.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the bootstrap (default: 0)")


def run(options: argparse.Namespace) -> int:
    print(markdown(compare(options.a, options.b, options.out, options.seed)))
    return OK
