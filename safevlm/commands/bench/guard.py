"""`safevlm bench guard`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT
from safevlm.commands import OK
from safevlm.commands.evaluation.model_flags import add_model
from safevlm.commands.evaluation.suite_flags import data_of
from safevlm.evaluation.speed.overhead import overhead, told

TEXT = "time a defense against a bare model, on benign requests"
DESCRIPTION = (
    "Writes OUT/overhead.json: time until the LLM starts, to the first token and of the whole answer over the bare "
    "model's, paired, one by one; and how often tower and LLM were run."
)


def flags(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--against", required=True, metavar="MODEL", help="model that answers without a defense")
    command.add_argument("--n", type=COUNT, default=60, metavar="N", help="requests that are timed (default: 60)")
    command.add_argument("--partial", action="store_true", help="go on with a suite that is not complete")


def run(options: argparse.Namespace) -> int:
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
