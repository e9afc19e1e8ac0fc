"""`safevlm eval refusals`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.commands import OK
from safevlm.evaluation.judges.refusal_table import refusals

TEXT = "how often the refusal rules err, beside phrase lists"
DESCRIPTION = "Measures rules and phrase lists on the labelled answers that come with the code."


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, metavar="FILE", help="JSON file for the table")
    command.add_argument("--phrases", metavar="FILE", help="an official list, one phrase per line, as more columns")


def run(options: argparse.Namespace) -> int:
    print(refusals(Path(options.out), Path(options.phrases) if options.phrases else None))
    return OK
