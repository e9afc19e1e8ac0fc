"""`safevlm eval grid`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.command_line import SEED
from safevlm.commands import FINDING, OK
from safevlm.evaluation.grid.build import TABLE, grid

TEXT = "every defense on the same questions: one table, paired tests and a figure"
DESCRIPTION = (
    "Reads the judged runs OUT/runs/ROW/SEED/ATTACK that eval/compare_defenses.sh leaves, and writes OUT/grid.json, "
    "grid.md, grid.png and grid.svg. Exit code 1: a row is missing or unfinished."
)


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the grid")
    command.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the bootstrap (default: 0)")


def run(options: argparse.Namespace) -> int:
    table = grid(options.out, options.seed)
    print((Path(options.out) / TABLE).read_text(encoding="utf-8"))
    return FINDING if table["not_run"] or table["problems"] else OK
