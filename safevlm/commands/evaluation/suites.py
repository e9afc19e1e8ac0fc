"""`safevlm eval suites`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.commands import FINDING, OK
from safevlm.commands.evaluation.suite_flags import SUITE_HELP
from safevlm.evaluation.suites.overview import lines, standings, tsv
from safevlm.evaluation.suites.own import is_file

TEXT = "the benchmarks there are: source, licence, rows published and found"
DESCRIPTION = "Reads tables only. Exit code 1: a suite that is there has fewer rows or images than published."


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, metavar="DIR", help="a folder of suites, or one suite's own folder")
    command.add_argument("--suite", action="append", metavar="NAME", help=f"only this one; repeat. {SUITE_HELP}")
    command.add_argument(
        "--tsv",
        action="store_true",
        help="for scripts: SUITE, JUDGE, model or rules, there, absent or error, why; benchmarks only",
    )
    command.add_argument("--judge", default="", metavar="NAME", help="with --tsv: this judge, not the suites' own")


def run(options: argparse.Namespace) -> int:
    data = options.data
    if data is None and len(options.suite or ()) == 1 and is_file(options.suite[0]):
        data = Path(options.suite[0]).parent
    found = standings(data, options.suite)
    if options.tsv:
        asked = found if options.suite else [one for one in found if not one.suite.is_synthetic]
        print("\n".join(tsv(asked, options.judge)))
        return OK
    print("\n".join(lines(found)))
    return FINDING if any(one.is_short for one in found) else OK
