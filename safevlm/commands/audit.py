"""`safevlm audit`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from safevlm.command_line import AMOUNT, COUNT, number
from safevlm.commands import OK, add_base

TEXT = "Find risky images and doubles in a training set; the LLM is never loaded."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="a folder of images, LLaVA's JSON or JSONL, parquet, a webdataset tar, or a folder of parquets and tars",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint with a safety head")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="where the result goes; a stopped audit goes on there"
    )
    parser.add_argument("--images", default="", metavar="DIR", help="where paths in JSON and parquet start")
    parser.add_argument("--column", default="", metavar="NAME", help="parquet's column of images; default: the first")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="corrects the counts: labelled images, not trained on (JSON or JSONL with image and safe_type)",
    )
    parser.add_argument(
        "--threshold",
        type=number(float, above=0, most=1),
        metavar="P",
        help="flag from this probability of any risk on; default: the arg-max",
    )
    parser.add_argument("--policy", metavar="FILE", help="YAML: what is not allowed by it is flagged")
    parser.add_argument(
        "--question", default="What is in the picture?", metavar="TEXT", help="what a head that reads text is asked"
    )
    parser.add_argument("--top", type=AMOUNT, default=24, metavar="K", help="images per category in the gallery (24)")
    parser.add_argument("--batch-size", type=COUNT, default=64, metavar="N", help="images per forward (64)")
    parser.add_argument(
        "--workers", type=AMOUNT, default=0, metavar="N", help="threads that decode (a core each, to 16)"
    )
    parser.add_argument(
        "--threads",
        type=AMOUNT,
        default=0,
        metavar="N",
        help="threads of a model on the CPU (torch's choice); the same in all processes, since last bits depend on it",
    )
    parser.add_argument("--shard", metavar="I/N", help="take the I-th of N shares; or launch with torchrun")
    parser.add_argument("--shard-size", type=COUNT, default=2048, metavar="N", help="images per shard on disk (2048)")
    parser.add_argument("--bench", action="store_true", help="compare the speed with the bare vision tower's")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add_base(parser)


def run(options: argparse.Namespace) -> int:
    from safevlm.analysis.audit import run

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(run.AuditSettings)}
    settings = run.AuditSettings(**given)
    outcome = run.audit(settings)
    run.check_readable(outcome, settings)
    for line in run.lines(outcome, settings):
        print(line)
    return OK
