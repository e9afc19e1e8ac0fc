"""`safevlm bench COMMAND`: ratios against a named peer, measured in one run. One file per command.

Exit codes: 0 fine, 1 a finding, 2 wrong usage or input.
"""

from __future__ import annotations

import argparse
from types import ModuleType

from safevlm.commands import USER_ERRORS, WRONG_USAGE, print_error
from safevlm.commands.bench import ask, audit, data, guard, serve, serve_cost, stage1, train

TEXT = "Measure speed and cost: a guard over the bare model, ways to ask, a server, stage 1, an audit, images, records."
COMMANDS: dict[str, ModuleType] = {
    "guard": guard,
    "ask": ask,
    "serve": serve,
    "serve-cost": serve_cost,
    "stage1": stage1,
    "train": train,
    "audit": audit,
    "data": data,
}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.description = "Speed and cost as ratios against a named peer, measured in one run."
    kinds = parser.add_subparsers(dest="benchmark", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.flags(kinds.add_parser(name, help=command.TEXT, description=command.DESCRIPTION))


def run(options: argparse.Namespace) -> int:
    try:
        code: int = COMMANDS[options.benchmark].run(options)
    except USER_ERRORS as error:
        print_error(error)
        return WRONG_USAGE  # 1 means that there is a result with a finding
    return code
