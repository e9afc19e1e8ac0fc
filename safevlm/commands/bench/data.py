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
    "list of parsed ones; a mix of them over a script that holds all rows; near-duplicates among fingerprints over "
    "equal ones alone. All images, records and fingerprints are made."
)
FILE = "data.json"
PARTS = ("images", "records", "mix", "duplicates")


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    command.add_argument("--only", choices=PARTS, help="this part alone (default: all)")
    command.add_argument("--images", type=COUNT, default=16, metavar="N", help="images of a round (default: 16)")
    command.add_argument("--rounds", type=COUNT, default=20, metavar="N", help="rounds about images (default: 20)")
    command.add_argument("--records", type=COUNT, default=100_000, metavar="N", help="records (default: 100000)")
    command.add_argument("--starts", type=COUNT, default=3, metavar="N", help="rounds of all else (default: 3)")
    command.add_argument(
        "--fingerprints", type=COUNT, default=100_000, metavar="N", help="fingerprints (default: 100000)"
    )


def run(options: argparse.Namespace) -> int:
    from safevlm.evaluation.speed import data_start, duplicate_cost, image_cost, mix_cost

    parts = {
        "images": (image_cost, options.images, options.rounds),
        "records": (data_start, options.records, options.starts),
        "mix": (mix_cost, options.records, options.starts),
        "duplicates": (duplicate_cost, options.fingerprints, options.starts),
    }
    table: dict[str, Any] = {}
    lines: list[str] = []
    for name, (part, count, rounds) in parts.items():
        if options.only in (None, name):
            table[name] = part.measure(count, rounds)
            lines += part.told(table[name])
    options.out.mkdir(parents=True, exist_ok=True)
    write_result(options.out / FILE, table, {})
    print("\n".join(lines))
    return OK
