"""`safevlm bench train`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT
from safevlm.commands import OK

TEXT = "head-only stage 1 that keeps the tower's features, over the same runs that do not"
DESCRIPTION = (
    "Trains the recipe whole in four ways, in turns, and writes OUT/train.json: with the batches that the LLM would "
    "read and the tower in every epoch, with batches for the head alone, with features that are kept, and again with "
    "what the run before kept; and whether all learn the same head."
)


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recipe", default="miniature_stage1", metavar="NAME", help="of a head-only stage 1")
    command.add_argument("--model", required=True, metavar="DIR", help="checkpoint to start from")
    command.add_argument("--data", required=True, metavar="FILE", help="training records")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the result")
    command.add_argument("--epochs", type=COUNT, default=5, metavar="N", help="epochs of each run (default: 5)")
    command.add_argument("--rounds", type=COUNT, default=5, metavar="N", help="runs of each way (default: 5)")


def run(options: argparse.Namespace) -> int:
    from safevlm.evaluation.speed.head_only import head_only, told

    table = head_only(
        options.recipe, options.model, options.data, options.out, epochs=options.epochs, rounds=options.rounds
    )
    print("\n".join(told(table)))
    return OK
