"""`safevlm bench guard`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT
from safevlm.commands import OK
from safevlm.commands.evaluation.model_flags import add_model
from safevlm.commands.evaluation.suite_flags import data_of
from safevlm.evaluation.speed.overhead import overhead, told
from safevlm.usage import UsageError

TEXT = "time a guard over transformers' generate on the same weights, or a defense over a bare model"
DESCRIPTION = (
    "Writes OUT/guard.json: first token and whole answer of an engine without a defense, with the safety head, with "
    "SafeCLIP, and where it refuses, over transformers' own generate on the same weights, one by one and in batches. "
    "With --against OUT/overhead.json: time of --defense until the LLM starts, to the first token and of the whole "
    "answer over the bare model's, on benign requests, paired, one by one; and how often tower and LLM were run."
)


def flags(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument(
        "--against",
        metavar="MODEL",
        help="model that answers without a defense (default: transformers' generate on the weights of --model)",
    )
    command.add_argument("--n", type=COUNT, default=60, metavar="N", help="requests that are timed (default: 60)")
    command.add_argument(
        "--batch-size",
        type=COUNT,
        default=32,
        metavar="N",
        help="without --against: requests of a batch, beside one by one (default: 32)",
    )
    command.add_argument("--partial", action="store_true", help="go on with a suite that is not complete")


def run(options: argparse.Namespace) -> int:
    if options.against is None:
        return _beside_plain(options)
    table = overhead(
        options.suite,
        data_of(options),
        options.model,
        options.defense,
        options.against,
        options.out,
        options.n,
        policy=options.policy,
        max_new_tokens=options.max_new_tokens,
        partial=options.partial,
        device=options.device,
        base=options.base,
        seed=options.seed,
        command=options.command_line,
    )
    print("\n".join(f"{options.out}: {line}" for line in told(table)))
    return OK


def _beside_plain(options: argparse.Namespace) -> int:
    from safevlm.evaluation.speed import beside_plain

    if options.defense != "none" or options.policy:
        raise UsageError("--defense, --policy: without --against all ways are measured, under policies of their own")
    table = beside_plain.beside_plain(
        options.suite,
        data_of(options),
        options.model,
        options.out,
        options.n,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        partial=options.partial,
        device=options.device,
        base=options.base,
    )
    print("\n".join(f"{options.out}: {line}" for line in beside_plain.told(table)))
    return OK
