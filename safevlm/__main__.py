"""`safevlm COMMAND`: the commands of the toolkit. Exit codes: 0 fine, 1 a finding or failed check, 2 wrong usage."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence

from safevlm import versions
from safevlm.command_line import CommandParser
from safevlm.commands import (
    FINDING,
    USER_ERRORS,
    WRONG_USAGE,
    analyze,
    audit,
    bench,
    chat,
    check,
    convert,
    embed,
    evaluation,
    library_noise,
    merge,
    mix,
    pair,
    pictograms,
    plan,
    print_error,
    serve,
    shuffle_tensor,
    terminal,
    train,
)
from safevlm.usage import UsageError

COMMANDS = {
    "check": check,
    "convert": convert,
    "mix": mix,
    "pair": pair,
    "train": train,
    "merge": merge,
    "embed": embed,
    "shuffle-tensor": shuffle_tensor,
    "chat": chat,
    "serve": serve,
    "analyze": analyze,
    "audit": audit,
    "eval": evaluation,
    "bench": bench,
    "plan": plan,
    "pictograms": pictograms,
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in words if not word.startswith("--local_rank")]  # deepspeed's launcher puts it first
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    library_noise.silence()
    terminal.prepare()
    if wrong := terminal.unreadable(words):
        print(f"safevlm: error: {wrong}", file=sys.stderr)
        return WRONG_USAGE
    if words[:1] == ["train"]:
        return _run(train.run, words[1:])
    command = words[0] if words else ""
    if command == "check":
        return _check(parser_for(command), words)
    options = parser_for(command).parse_args(words)
    options.command_line = shlex.join(["safevlm", *words])
    return _run(COMMANDS[options.command].run, options)


def parser_for(command: str) -> argparse.ArgumentParser:
    """Knows every command by name, and the flags of one: to describe all of them would import everything."""
    parser = CommandParser(prog="safevlm", description="Safety modules and defenses for LLaVA-v1.5.")
    parser.add_argument("--version", action="version", version=versions.told() if command == "--version" else "")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        own = commands.add_parser(name, help=module.TEXT, description=module.TEXT)
        if name == command:
            module.flags(own)
    return parser


def _check(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """The one command that takes flags of its own and of the recipe."""
    own, recipe_flags = check.split(words)
    options = parser.parse_args(own)
    options.recipe_flags = recipe_flags
    return _run(check.run, options)


def _run(command: Callable[..., int], options: object) -> int:
    try:
        return command(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return FINDING
    except UsageError as error:
        print_error(error)
        return WRONG_USAGE
    except USER_ERRORS as error:
        print_error(error)
        return FINDING


if __name__ == "__main__":
    sys.exit(main())
