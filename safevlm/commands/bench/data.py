"""`safevlm bench data`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from safevlm.command_line import COUNT
from safevlm.commands import OK
from safevlm.data.made_by import write_result

TEXT = "what images cost before a model and in an audit, how long training takes to have its records, and a mix"
DESCRIPTION = (
    "Writes OUT/data.json, in CPU seconds, paired: preparing an image over transformers' own image processor; an audit "
    "over the bare vision tower (ViT-B/16, random weights); a start with made-up records in a fresh process over a "
    "list of parsed ones; a mix of them over a script that holds all rows. All images and records are made."
)
FILE = "data.json"
PARTS = ("images", "records", "mix")


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    command.add_argument("--only", choices=PARTS, help="this part alone (default: all)")
    command.add_argument("--images", type=COUNT, default=16, metavar="N", help="images of a round (default: 16)")
    command.add_argument("--rounds", type=COUNT, default=20, metavar="N", help="rounds about images (default: 20)")
    command.add_argument("--records", type=COUNT, default=100_000, metavar="N", help="records (default: 100000)")
    command.add_argument(
        "--starts", type=COUNT, default=3, metavar="N", help="rounds of starts and of mixes (default: 3)"
    )


def run(options: argparse.Namespace) -> int:
    from safevlm.evaluation.speed import data_start, image_cost, mix_cost

    table: dict[str, Any] = {}
    lines: list[str] = []
    if options.only in (None, "images"):
        table["images"] = image_cost.measure(options.images, options.rounds)
        lines += image_cost.told(table["images"])
    if options.only in (None, "records"):
        table["records"] = data_start.measure(options.records, options.starts)
        lines += data_start.told(table["records"])
    if options.only in (None, "mix"):
        table["mix"] = mix_cost.measure(options.records, options.starts)
        lines += mix_cost.told(table["mix"])
    options.out.mkdir(parents=True, exist_ok=True)
    write_result(options.out / FILE, table, {})
    print("\n".join(lines))
    return OK
