"""`safevlm eval ask`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT
from safevlm.commands import FINDING, OK
from safevlm.commands.evaluation.model_flags import add_model
from safevlm.commands.evaluation.suite_flags import data_of
from safevlm.data import perturbations
from safevlm.evaluation.runs.ask import ask, missing
from safevlm.evaluation.runs.served import told

TEXT = "put a suite's questions to a model behind a defense"
DESCRIPTION = "Writes OUT/replies.jsonl and OUT/run.json. A run that was stopped goes on when asked again."


def flags(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = perturbations.told()
    add_model(command)
    command.add_argument("--batch-size", type=COUNT, default=64, metavar="N", help="requests at once (default: 64)")
    command.add_argument(
        "--limit", type=COUNT, metavar="N", help="ask only N requests, the groups in turn (default: all)"
    )
    command.add_argument("--group", action="append", default=[], metavar="NAME", help="ask only this group; repeat")
    command.add_argument(
        "--perturb", default="", metavar="NAME[:STRENGTH]", help="change the images; asks only requests that have any"
    )
    command.add_argument(
        "--images", metavar="DIR", help="folder for changed images; runs may share it (default: OUT/images)"
    )
    command.add_argument(
        "--shard", metavar="I/N", help="this process asks the I-th of N parts (default: as torchrun says, or all)"
    )
    command.add_argument(
        "--partial", action="store_true", help="go on where rows or images of the suite are missing; it is told"
    )


def run(options: argparse.Namespace) -> int:
    count = ask(
        options.suite,
        data_of(options),
        options.model,
        options.defense,
        options.out,
        policy=options.policy,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        limit=options.limit,
        groups=options.group,
        perturb=options.perturb,
        images=options.images,
        device=options.device,
        base=options.base,
        seed=options.seed,
        shard=options.shard,
        partial=options.partial,
        command=options.command_line,
    )
    print(f"{options.out}: {count} new replies")
    left, failed = missing(options.out)
    if left:
        print(f"{options.out}: {left} requests have no reply yet; other processes, or this command again, ask them")
    if failed:
        print(f"{options.out}: without an answer: {told(failed)}; this command asks them again")
    return FINDING if failed else OK
