"""Flags that name a suite and its data."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.evaluation.suites import DEFAULT
from safevlm.evaluation.suites.own import is_file
from safevlm.usage import UsageError

SUITE_HELP = "questions: a name of `safevlm eval suites`, a YAML of your own, or package.module:SUITE"


def add_suite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--suite", default=DEFAULT, metavar="NAME", help=f"{SUITE_HELP} (default: %(default)s)")
    command.add_argument(
        "--data",
        metavar="DIR",
        help="folder of the suite's files, or of suites; default: a YAML's own folder",
    )


def data_of(options: argparse.Namespace) -> str:
    """The folder of the data. ValueError: none is given, and the suite has no folder of its own."""
    if options.data is not None:
        return str(options.data)
    if not is_file(options.suite):
        raise UsageError(f"--data: name the folder of the files of suite {options.suite!r}")
    return str(Path(options.suite).parent)
