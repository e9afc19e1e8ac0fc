"""`safevlm eval COMMAND`: evaluation in three steps with files between. One file per command, as one level up.

Exit codes: 0 fine, 1 a finding (nothing could be scored; a run in the report is unfinished), 2 wrong usage or input.
"""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from safevlm.commands import INTERRUPTED, USER_ERRORS, WRONG_USAGE, print_error

TEXT = "Evaluate: ask a suite's questions, judge the replies, report; compare runs and defenses."


def commands() -> dict[str, ModuleType]:
    """The modules of the commands by name, imported when first needed."""
    from safevlm.commands.evaluation import (
        ablations,
        agreement,
        ask,
        attack,
        compare,
        grid,
        judge,
        refusals,
        report,
        robustness,
        suites,
    )

    return {
        "ask": ask,
        "attack": attack,
        "robustness": robustness,
        "judge": judge,
        "refusals": refusals,
        "agreement": agreement,
        "compare": compare,
        "suites": suites,
        "report": report,
        "grid": grid,
        "ablations": ablations,
    }


def flags(parser: argparse.ArgumentParser) -> None:
    parser.description = "Evaluation in three steps with files between: ask (needs the model), judge, report."
    parser.epilog = "Exit codes: 0 fine, 1 a finding (nothing scored, a run unfinished), 2 wrong usage."
    kinds = parser.add_subparsers(dest="evaluation", required=True, metavar="COMMAND")
    for name, command in commands().items():
        command.flags(kinds.add_parser(name, help=command.TEXT, description=command.DESCRIPTION))


def run(options: argparse.Namespace) -> int:
    try:
        return commands()[options.evaluation].run(options)
    except USER_ERRORS as error:
        print_error(error)
        return WRONG_USAGE  # 1 means that there is a result with a finding
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
