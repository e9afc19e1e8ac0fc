"""The commands of the evaluation: `python -m eval ask | judge | report | overhead`.

Exit codes: 0 fine, 1 a finding (nothing could be scored; a run in the report is unfinished), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from eval.commands import (
    INTERRUPTED,
    WRONG_USAGE,
    agreement,
    ask,
    compare,
    grid,
    judge,
    overhead,
    refusals,
    report,
    suites,
    throughput,
)

COMMANDS = {
    "ask": ask,
    "judge": judge,
    "refusals": refusals,
    "agreement": agreement,
    "overhead": overhead,
    "throughput": throughput,
    "compare": compare,
    "suites": suites,
    "report": report,
    "grid": grid,
}
EXPECTED = (ValueError, OSError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    options.command_line = shlex.join(["python", "-m", "eval", *words])
    try:
        return COMMANDS[options.command].run(options)
    except EXPECTED as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Evaluation in three steps with files between: ask (needs the model), judge, report.",
        epilog="Exit codes: 0 fine, 1 a finding (nothing scored, a run unfinished), 2 wrong usage.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.flags(commands.add_parser(name, help=command.TEXT, description=command.DESCRIPTION))
    return parser


if __name__ == "__main__":
    sys.exit(main())
