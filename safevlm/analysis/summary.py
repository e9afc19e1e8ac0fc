"""`summary.json` of an analysis: its numbers, and what they were made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safevlm.analysis.labelled_images import ImageSet
from safevlm.data import used_folder
from safevlm.data.made_by import versions, write_result
from safevlm.model.loading import Loaded

SCHEMA = 1
FILE = "summary.json"
PACKAGES = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "matplotlib")


def write(
    analysis: str, out: Path, loaded: Loaded, sets: Sequence[ImageSet], seed: int, numbers: Mapping[str, Any]
) -> Path:
    """The old file or the new one, never half of one. Not a number is not a number: an error."""
    table = {
        "schema": SCHEMA,
        "analysis": analysis,
        "model": os.path.relpath(loaded.path),
        "data": [_described(one) for one in sets],
        "seed": seed,
        "interval": "95 %: Wilson for shares, percentile bootstrap otherwise",
        **numbers,
        "versions": versions(PACKAGES),
    }
    path = out / FILE
    write_result(path, table, {"model": loaded.path, "data": [one.file for one in sets]})
    return path


def refuse_other(analysis: str, out: Path, loaded: Loaded, sets: Sequence[ImageSet], seed: int) -> None:
    """ValueError, before any work: `out` holds another analysis, or one of another model, data or seed."""
    facts = {
        "analysis": analysis,
        "model": os.path.relpath(loaded.path),
        "data": [_described(one) for one in sets],
        "seed": seed,
    }
    used_folder.refuse_other_work(out / FILE, facts)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, the first to the left."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [text.ljust(widths[0]) if at == 0 else text.rjust(widths[at]) for at, text in enumerate(row)]
        print("  ".join(cells).rstrip())


def _described(one: ImageSet) -> dict[str, Any]:
    return {
        "name": one.name,
        "file": os.path.relpath(one.file),
        "images": len(one.images),
        "left_out": {"without_image": one.without_image, "unlabelled": one.unlabelled},
    }
