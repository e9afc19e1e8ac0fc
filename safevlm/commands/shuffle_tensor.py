"""`safevlm shuffle-tensor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.command_line import SEED
from safevlm.commands import OK

TEXT = "Make a security tensor's control: its values shuffled within each token or colour channel, every norm kept."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tensor", type=Path, metavar="FILE", help="security_tensor_textual.safetensors, or the visual one"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the file of the same name")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of the order (default 0)")


def run(options: argparse.Namespace) -> int:
    from safevlm.defenses.security_tensor import shuffle_file

    print(f"done: {shuffle_file(options.tensor, options.out, options.seed)}")
    return OK
