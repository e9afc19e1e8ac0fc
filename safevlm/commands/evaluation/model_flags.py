"""Flags of the commands that load a model."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT, SEED
from safevlm.commands.evaluation.suite_flags import add_suite


def add_model(command: argparse.ArgumentParser) -> None:
    add_suite(command)
    command.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder; ask: or http://HOST/v1#NAME")
    command.add_argument("--defense", default="none", metavar="NAME", help="defense, or a stack a+b (default: none)")
    command.add_argument("--policy", metavar="FILE", help="YAML with what to do per category and level")
    command.add_argument("--base", metavar="DIR", help="base model of the checkpoint, if it has moved")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    command.add_argument(
        "--max-new-tokens", type=COUNT, metavar="N", help="longest reply in tokens (default: the suite's)"
    )
    command.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="seed for whatever is drawn at random (default: 0)"
    )
