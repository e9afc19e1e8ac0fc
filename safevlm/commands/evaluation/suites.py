"""`safevlm eval suites`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.commands import FINDING, OK
from safevlm.evaluation.suites import SUITES
from safevlm.evaluation.suites.overview import lines, standings

TEXT = "the benchmarks there are: source, licence, rows published and found"
DESCRIPTION = "Reads tables only. Exit code 1: a suite that is there has fewer rows or images than published."


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, metavar="DIR", help="a folder of suites, or one suite's own folder")
    command.add_argument("--suite", action="append", choices=list(SUITES), metavar="NAME", help="only this one; repeat")


def run(options: argparse.Namespace) -> int:
    found = standings(options.data, options.suite)
    print("\n".join(lines(found)))
    return FINDING if any(one.is_short for one in found) else OK
