"""`safevlm bench stage1`: collects what `eval/bench_stage1.sh` trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.commands import OK

TEXT = "head-only stage 1 beside the full one: the table of trained runs"
DESCRIPTION = (
    "Reads DIR/ROW/final and DIR/ROW/analysis of trained runs (eval/bench_stage1.sh makes them) and writes "
    "DIR/bench_stage1.json: samples per second, seconds, and the head's accuracy."
)


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="DIR", help="folder of the runs")
    command.add_argument("--rows", nargs="+", required=True, metavar="ROW", help="folders of the runs in DIR, in order")
    command.add_argument("--fast", required=True, metavar="ROW", help="the row whose speed is told over --slow's")
    command.add_argument("--slow", required=True, metavar="ROW")
    command.add_argument("--made-by", default="", metavar="TEXT", help="the command that made them, for the record")


def run(options: argparse.Namespace) -> int:
    from safevlm.evaluation.speed.stage1 import collect, told

    table = collect(options.folder, options.rows, options.fast, options.slow, options.made_by)
    print("\n".join(told(table)))
    return OK
