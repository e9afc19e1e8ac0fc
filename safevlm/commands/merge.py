"""`safevlm merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.command_line import number
from safevlm.commands import OK, add_base

TEXT = "Fold the LoRA into the LLM, compare logits, write a complete checkpoint."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a training run, or one of its checkpoints")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the merged checkpoint goes")
    parser.add_argument(
        "--tolerance",
        type=number(float, least=0),
        default=1e-3,
        help="largest allowed difference, relative to the largest logit",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="type of the weights as written; merging and comparing are float32 always",
    )
    parser.add_argument(
        "--stock", action="store_true", help="write a plain model for stock servers, and the guard beside it in safety/"
    )
    add_base(parser)


def run(options: argparse.Namespace) -> int:
    from safevlm.training.merge import describe, fold

    done = fold(
        options.run,
        Path(options.out),
        base=options.base,
        tolerance=options.tolerance,
        dtype=options.dtype,
        stock=options.stock,
    )
    print(describe(done, options.out, options.tolerance))
    return OK
