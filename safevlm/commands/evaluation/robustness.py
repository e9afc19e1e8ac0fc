"""`safevlm eval robustness`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.commands import OK
from safevlm.commands.evaluation.run_flags import named_folders
from safevlm.evaluation.attacks import report

TEXT = "attacked targets beside each other: a table, and success against the size of the change"
DESCRIPTION = "Reads folders of `safevlm eval attack` and writes OUT/comparison.json, .md and OUT/curves.png."


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run", action="append", required=True, metavar="NAME=DIR", help="an attacked target and its name; repeat"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the results")


def run(options: argparse.Namespace) -> int:
    print(report.compare(dict(named_folders(options.run)), Path(options.out), options.command_line))
    return OK
