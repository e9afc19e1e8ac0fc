"""`safevlm bench serve-cost`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT, SEED
from safevlm.commands import OK, add_base
from safevlm.commands.evaluation.suite_flags import add_suite, data_of
from safevlm.evaluation.speed.serve_cost import serve_cost, told

TEXT = "what a guard adds to a server's requests, over the same server without one"
DESCRIPTION = (
    "Starts `safevlm serve` without a defense, with one, and with one in front of the first, and writes "
    "OUT/serve_cost.json: benign requests guarded over bare, through the front over direct, and refused over answered."
)


def flags(command: argparse.ArgumentParser) -> None:
    add_suite(command)
    command.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder")
    command.add_argument("--defense", default="auto", metavar="NAME", help="as for `safevlm serve`")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the result")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument("--max-new-tokens", type=COUNT, metavar="N", help="longest reply (default: the suite's)")
    command.add_argument("--n", type=COUNT, default=120, metavar="N", help="rounds that are timed (default: 120)")
    command.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the intervals (default: 0)")
    add_base(command)


def run(options: argparse.Namespace) -> int:
    table = serve_cost(
        options.suite,
        data_of(options),
        options.model,
        options.defense,
        options.out,
        n=options.n,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        base=options.base,
        seed=options.seed,
    )
    print("\n".join(told(table)))
    return OK
