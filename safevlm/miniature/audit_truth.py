"""An audit of a contaminated folder beside the truth: recall, precision, and estimated beside true counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from safevlm.intervals import wilson
from safevlm.taxonomy import CLEAN, DEFAULT


def compare(truth: Path, audit: Path) -> dict[str, Any]:
    """`truth`: `truth.jsonl` of `contaminate`; `audit`: the folder of an audit of its `images`."""
    import pyarrow.parquet as parquet

    lines = truth.read_text(encoding="utf-8").splitlines()
    true = {row["image"]: DEFAULT.category_names[row["safe_type"]] for row in map(json.loads, lines)}
    found: Counter[str | tuple[bool, bool]] = Counter()
    for row in parquet.read_table(audit / "audit.parquet", columns=["path", "category", "action"]).to_pylist():
        category = true[f"images/{row['path']}"]
        is_risky, is_flagged = category != CLEAN, row["action"] not in ("", "allow")
        found[is_risky, is_flagged] += 1
        found["named"] += is_risky and is_flagged and row["category"] == category
    hits, misses, alarms = found[True, True], found[True, False], found[False, True]
    return {
        "images": len(true),
        "risky": hits + misses,
        "flagged": hits + alarms,
        "recall": _share(hits, hits + misses),
        "precision": _share(hits, hits + alarms),
        "category_right_of_found": _share(found["named"], hits),
        "true_counts": {name: sum(value == name for value in true.values()) for name in DEFAULT.category_names},
        "estimate": json.loads((audit / "summary.json").read_text(encoding="utf-8"))["estimate"],
    }


def _share(part: int, whole: int) -> dict[str, Any]:
    """With the 95 % interval of Wilson."""
    if not whole:
        return {"value": None, "n": 0}
    low, high = wilson(part, whole)
    return {"value": part / whole, "n": whole, "low": low, "high": high}
