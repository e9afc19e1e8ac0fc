"""`summary.json` and what is printed: counts, their correction, duplicates, and how it was decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from safevlm.analysis.audit.duplicates import DISTANCE, SHADES
from safevlm.analysis.audit.estimate import ILL_CONDITIONED, PrevalenceEstimate
from safevlm.analysis.audit.merge import MergedAudit
from safevlm.analysis.audit.plan import ShardPlan
from safevlm.analysis.audit.verdicts import Rule

SUMMARY = "summary.json"


def summarize(
    data: str, model: str, plan: ShardPlan, merged: MergedAudit, rule: Rule, found: PrevalenceEstimate | None
) -> dict[str, Any]:
    """Everything that is counted. Without a calibration `estimate` is null: the counts are not corrected."""
    tally, taxonomy = merged.tally, rule.policy.taxonomy
    return {
        "schema": 1,
        "data": data,
        "model": model,
        "images": plan.images,
        "unreadable": tally.unreadable,
        "flagged": sum(tally.flagged.values()),
        "threshold": rule.threshold,
        "category": {name: tally.category[name] for name in taxonomy.category_names},
        "level": {name: tally.level[name] for name in taxonomy.level_names},
        "action": dict(sorted(tally.action.items())),
        "flagged_category": {name: tally.flagged[name] for name in taxonomy.category_names if tally.flagged[name]},
        "estimate": None if found is None else asdict(found),
        "duplicates": {
            "exact": _sizes(merged.groups.exact),
            "near": _sizes(merged.groups.near),
            "distance_bits": DISTANCE,
            "shades": [int(SHADES[0]), int(SHADES[-1])],
        },
    }


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The summary for people."""
    yield f"{summary['images']:,} images, {summary['unreadable']:,} unreadable, {summary['flagged']:,} flagged"
    found = summary["estimate"]
    for name, count in summary["category"].items():
        corrected = f"   estimated {_interval(found['categories'][name])}" if found else ""
        yield f"  {name:<14}{count:>9,}{corrected}"
    yield from _about_estimate(found)
    for kind, title in (("exact", "pixel for pixel the same"), ("near", "nearly the same, those included")):
        sizes = summary["duplicates"][kind]
        yield f"{title}: {sizes['images']:,} images in {sizes['groups']:,} groups, the largest {sizes['largest']:,}"


def _about_estimate(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield "counts are what the head reported, not corrected for its errors (--calibration FILE corrects them)"
        return
    yield f"  {'risky in all':<14}{'':>9}   estimated {_interval(found['risky'])}"
    if found["condition"] > ILL_CONDITIONED:
        yield "  the head takes some categories for each other so often that their estimates are guesses"


def _interval(count: Mapping[str, float]) -> str:
    return f"{count['value']:>9,.0f}  [{count['low']:,.0f}, {count['high']:,.0f}]"


def _sizes(first: np.ndarray) -> dict[str, int]:
    """Of groups given by the index of their first image."""
    _, sizes = np.unique(first[first >= 0], return_counts=True)
    return {"groups": len(sizes), "images": int(sizes.sum()), "largest": int(sizes.max(initial=0))}
