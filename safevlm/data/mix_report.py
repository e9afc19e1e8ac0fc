"""What a mix took and why: `OUT/mix.json`, and the same as a table to read.

Without times and without places of the machine it ran on, so that the same mix gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict

from safevlm.data import mix
from safevlm.data.candidates import Candidates, first_come_counts
from safevlm.data.labels import KEPT, OVERRULED, UNLABELLED
from safevlm.data.mix import MixPlan
from safevlm.data.sources import source_of
from safevlm.data.sources.fingerprints import file_digest
from safevlm.files import FileError, checked, read_json
from safevlm.versions import installed

SCHEMA = 1
OWN_LABELS = {
    KEPT: "keep the label they carry, where rule {rule!r} says something else (`relabel: true` lets the rule win)",
    OVERRULED: "lost the label they carry to rule {rule!r}",
}

LARGEST = 256 << 20
"""Bytes of a report, which may name 10,000 missing images of every source."""

Raw = dict[str, Any]


class PartCounts(TypedDict):
    found: int
    published: int | None


class SourceReport(TypedDict):
    kind: str
    split: str | None
    parts: dict[str, PartCounts]
    dropped: int
    without_image: int
    unusable: NotRequired[int]
    own_labels: NotRequired[dict[Literal["kept", "overruled"], dict[str, int]]]
    over_limit: int
    usable: int
    taken: int


class CategoryReport(TypedDict):
    asked: str | int
    found: int
    taken: int
    by_source: dict[str, int]


class StageReport(TypedDict):
    rows: int
    head_only: int
    levels: dict[str, int]


class HeldOutReport(TypedDict):
    images: int


class FileReport(TypedDict):
    sha256: str


class MixReportFile(TypedDict):
    """What is read of `mix.json`; it holds more."""

    sources: dict[str, SourceReport]
    absent: list[str]
    short: list[str]
    categories: dict[str, CategoryReport]
    stages: dict[str, StageReport]
    held_out: dict[str, HeldOutReport | None]
    files: dict[str, FileReport]


def read_report(file: Path) -> Raw:
    """The report of a mix that was made. FileError: it is none, by key."""
    try:
        return dict(checked(MixReportFile, read_json(file, limit=LARGEST), str(file), more=True))
    except FileError as error:
        raise FileError(f"{error}; not the report of a mix") from error


def report_of(made: MixPlan) -> Raw:
    """What was asked for, found and taken; JSON, without times and without places of the machine it ran on."""
    own, taken = made.mix, _by_source(made, made.pool)
    return {
        "schema": SCHEMA,
        "version": installed("safevlm") or "unknown",
        "mix": own.file.name,
        "mix_sha256": file_digest(own.file),
        "seed": own.seed,
        "taxonomy": own.taxonomy.to_dict(),
        "sources": {one.spec.name: _source_report(one, taken.get(one.spec.name, 0)) for one in made.scans},
        "absent": list(made.absent),
        "short": list(made.short),
        "categories": {name: _category_report(made, name) for name in [*own.taxonomy.category_names, UNLABELLED]},
        "stages": {name: _stage_report(made, made.pool.take(drawn)) for name, drawn in made.stages.items()},
    }


def _by_source(made: MixPlan, candidates: Candidates) -> dict[str, int]:
    return first_come_counts(candidates.rows["source"], [one.spec.name for one in made.scans])


def _source_report(one: mix.Scan, taken: int) -> Raw:
    source = source_of(one.spec.kind, one.spec.name)
    return {
        "kind": one.spec.kind,
        "split": one.spec.split,
        "licence": source.licence,
        **({"caution": source.caution} if source.caution else {}),
        "parts": {part: {"found": found, "published": told} for part, (found, told) in one.counts.items()},
        "rows": one.rows,
        "dropped": one.dropped,
        "without_image": one.without_image,
        "missing_images": one.missing,
        "unusable": one.without_use,
        "unusable_rows": one.unusable,
        "own_labels": {what: dict(sorted(rules.items())) for what, rules in one.own_labels.items() if rules},
        "over_limit": one.over_limit,
        "usable": len(one.candidates),
        "taken": taken,
        "files": {file.name: file_digest(file) for file in source.files(one.spec)},
    }


def _category_report(made: MixPlan, name: str) -> Raw:
    taken = made.pool.take(made.pool.buckets().get(name, np.zeros(0, "i8")))
    asked_for = made.mix.counts.get(name)
    return {
        "asked": "all" if asked_for is None else asked_for,
        "found": made.found.get(name, 0),
        "taken": len(taken),
        "by_source": _by_source(made, taken),
    }


def _stage_report(made: MixPlan, drawn: Candidates) -> Raw:
    return {
        "rows": len(drawn),
        "head_only": int(drawn.rows["head_only"].sum()),
        "categories": drawn.counts(),
        "levels": drawn.counts({label: label.level or UNLABELLED for label in drawn.labels}),
        "sources": _by_source(made, drawn),
    }


def lines(report: Raw) -> list[str]:
    """The report as a table to read."""
    table = [f"{'category':<14}{'asked':>8}{'found':>8}{'taken':>8}   from"]
    for name, row in report["categories"].items():
        if row["found"] or row["asked"] not in ("all", 0):
            origin = ", ".join(f"{source} {count}" for source, count in row["by_source"].items())
            table.append(f"{name:<14}{row['asked']:>8}{row['found']:>8}{row['taken']:>8}   {origin}")
    for name, stage in report["stages"].items():
        levels = ", ".join(f"{level} {count}" for level, count in stage["levels"].items())
        silent = f" ({stage['head_only']} head only)" if stage["head_only"] else ""
        table.append(f"{name}: {stage['rows']} records{silent}: {levels}")
    return [*map(_source_line, report["sources"].items()), *_own_label_lines(report), "", *table, *_remarks(report)]


def _own_label_lines(report: Raw) -> list[str]:
    """Which rules met labels that rows carry themselves."""
    return [
        f"{name}: {count} rows {OWN_LABELS[what].format(rule=rule)}"
        for name, row in report["sources"].items()
        for what, rules in row.get("own_labels", {}).items()
        for rule, count in rules.items()
    ]


def _source_line(pair: tuple[str, Raw]) -> str:
    name, row = pair
    parts = ", ".join(f"{part} {_told(counts)}" for part, counts in row["parts"].items())
    left_out = {
        "dropped by their label": row["dropped"],
        "without their image": row["without_image"],
        "that cannot be": row.get("unusable", 0),  # a report of before does not have it
        "over the limit": row["over_limit"],
    }
    gone = "".join(f", {count} {why}" for why, count in left_out.items() if count)
    return f"{name} ({row['kind']}, {row['split']}): {parts}; {row['usable']} usable{gone}, {row['taken']} taken"


def _told(counts: Raw) -> str:
    return str(counts["found"]) + (f" (published {counts['published']})" if counts["published"] else "")


def _remarks(report: Raw) -> list[str]:
    compared = [f"{name} ({row['images']} images)" for name, row in report["held_out"].items() if row]
    unseen = [name for name, row in report["held_out"].items() if not row]
    pairs = (
        ("sources that are not there", report["absent"]),
        ("short", report["short"]),
        ("no image shared with", compared),
        ("held out, not there, NOT compared with", unseen),
    )
    return [f"{what}: {', '.join(which)}" for what, which in pairs if which]
