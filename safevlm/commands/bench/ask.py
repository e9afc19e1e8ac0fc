"""`safevlm bench ask`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT
from safevlm.commands import OK
from safevlm.commands.evaluation.model_flags import add_model
from safevlm.commands.evaluation.suite_flags import data_of
from safevlm.evaluation.speed.throughput import throughput, told

TEXT = "requests a second: one by one, in batches, by several processes"
DESCRIPTION = "Writes OUT/throughput.json: every block of requests in every way, and whether the replies agree."


def flags(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--batch-size", type=COUNT, default=16, metavar="N", help="requests at once (default: 16)")
    command.add_argument("--processes", type=COUNT, default=2, metavar="N", help="processes (default: 2; 1: none more)")
    command.add_argument("--blocks", type=COUNT, default=8, metavar="N", help="blocks that are timed (default: 8)")
    command.add_argument("--block-size", type=COUNT, default=64, metavar="N", help="requests per block (default: 64)")


def run(options: argparse.Namespace) -> int:
    table = throughput(
        options.suite,
        data_of(options),
        options.model,
        options.defense,
        options.out,
        blocks=options.blocks,
        block_size=options.block_size,
        batch_size=options.batch_size,
        processes=options.processes,
        policy=options.policy,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        base=options.base,
        seed=options.seed,
        command=options.command_line,
    )
    print("\n".join(told(table)))
    return OK
