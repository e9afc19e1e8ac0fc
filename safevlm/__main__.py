"""`safevlm COMMAND`: the commands of the toolkit. Exit codes: 0 fine, 1 a finding or failed check, 2 wrong usage."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence

from safevlm.commands import FAILED, analyze, audit, chat, check, convert, embed, merge, mix, pair, train

COMMANDS = {
    "check": check,
    "convert": convert,
    "mix": mix,
    "pair": pair,
    "train": train,
    "merge": merge,
    "embed": embed,
    "chat": chat,
    "analyze": analyze,
    "audit": audit,
}
RUN_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
"""What a user can mend: shown as one line, without a traceback. Anything else is a bug and shows where it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in words if not word.startswith("--local_rank")]  # deepspeed's launcher puts it first
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)  # deprecations among our dependencies
    parser = argparse.ArgumentParser(prog="safevlm", description="Eyes for risk for LLaVA-v1.5.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.flags(commands.add_parser(name, help=command.TEXT, description=command.TEXT))
    if words[:1] == ["train"]:
        return _run(train.run, words[1:])
    if words[:1] == ["check"]:
        return _check(parser, words)
    options = parser.parse_args(words)
    return _run(COMMANDS[options.command].run, options)


def _check(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """The one command that takes flags of its own and of the recipe."""
    from safevlm.check.command import UsageError

    own, recipe_flags = check.split(words)
    options = parser.parse_args(own)
    options.recipe_flags = recipe_flags
    try:
        return _run(check.run, options)
    except UsageError as error:
        parser.error(str(error))


def _run(command: Callable[..., int], options: object) -> int:
    try:
        return command(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return FAILED
    except RUN_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        _end_progress_bars()
        print(f"error: {message}", file=sys.stderr)
        return FAILED


def _end_progress_bars() -> None:
    """A bar that an error left open would share its line with the message."""
    from tqdm import tqdm

    for bar in list(tqdm._instances):
        bar.close()


if __name__ == "__main__":
    sys.exit(main())
