"""`safevlm bench serve`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT, SEED
from safevlm.commands import FINDING, OK, add_base
from safevlm.commands.evaluation.suite_flags import add_suite, data_of
from safevlm.evaluation.speed.serve_load import serve_load, told

TEXT = "requests a second of a server: many clients at once, over one client"
DESCRIPTION = "Starts `safevlm serve`, and writes OUT/serve_load.json. Exit code 1: an answer is another than alone."


def flags(command: argparse.ArgumentParser) -> None:
    add_suite(command)
    command.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder")
    command.add_argument("--defense", default="auto", metavar="NAME", help="as for `safevlm serve`")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the result")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument("--max-new-tokens", type=COUNT, metavar="N", help="longest reply (default: the suite's)")
    add_base(command)
    command.add_argument("--clients", type=COUNT, default=64, metavar="N", help="clients at once (default: 64)")
    command.add_argument("--batch", type=COUNT, default=64, metavar="N", help="requests in a batch (default: 64)")
    command.add_argument("--blocks", type=COUNT, default=4, metavar="N", help="blocks that are timed (default: 4)")
    command.add_argument("--block-size", type=COUNT, default=128, metavar="N", help="requests per block (default: 128)")
    command.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the intervals (default: 0)")


def run(options: argparse.Namespace) -> int:
    table = serve_load(
        options.suite,
        data_of(options),
        options.model,
        options.defense,
        options.out,
        clients=options.clients,
        blocks=options.blocks,
        block_size=options.block_size,
        batch=options.batch,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        base=options.base,
        seed=options.seed,
    )
    print("\n".join(told(table)))
    same = table["same_answers"]
    return OK if same["count"] == same["n"] else FINDING
