"""Record files: every record is read as training reads it, every defect counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from safevlm.check.data_images import image_findings
from safevlm.check.findings import Finding
from safevlm.check.survey import DEFECTS, Survey
from safevlm.data import packed_images
from safevlm.data.json_rows import RowError
from safevlm.data.record_rows import record_rows
from safevlm.data.records import (
    RecordError,
    parse_record,
)
from safevlm.taxonomy import Taxonomy

LONG = 0.95
"""Quantile of lengths that is told beside median and maximum."""


def check_records(files: Sequence[Path], taxonomy: Taxonomy, against: Sequence[Path], images: str) -> list[Finding]:
    """Everything that is wrong with record files, and what they are made of."""
    survey = Survey(taxonomy)
    for file in files:
        _survey(survey, file, Path(images) if images else file.parent)
    findings = [_count_finding(files, survey)]
    if not survey.records:
        return findings
    findings += [survey.defects[kind].finding(title, survey.records) for kind, title in DEFECTS.items()]
    findings += image_findings(survey, against)
    repeated = survey.repeated.told("records that stand there twice, word for word")
    return [*findings, repeated, _table_finding(survey.cells), *_length_findings(survey)]


def _survey(survey: Survey, file: Path, images: Path) -> None:
    survey.seen.clear()
    packed = packed_images.folder_of(file)
    try:
        for place, raw in record_rows(file):
            survey.records += 1
            try:
                survey.add(parse_record(raw, place, survey.taxonomy, images, packed), file.stem)
            except RecordError as error:
                survey.defects[type(error)].add(str(error))
    except RowError as error:  # what follows cannot be read
        survey.defects[RecordError].add(f"{error} (reading stopped here)")


def _count_finding(files: Sequence[Path], survey: Survey) -> Finding:
    names = ", ".join(file.name for file in files)
    if not survey.records:
        return Finding(False, "; ".join(survey.defects[RecordError].named) or f"{names}: no records")
    parts = {part: count for part, count in survey.parts.items() if part}
    pairs = f"; pairs of security tensors: {', '.join(f'{part} {count:,}' for part, count in parts.items())}"
    told = f"{names}: {survey.records:,} records, {len(survey.images):,} images"
    return Finding(True, told + (pairs if parts else ""))


def _table_finding(cells: Counter[tuple[str, ...]]) -> Finding:
    """Records by file, source, category and level."""
    rows = [f"{'file':<12} {'source':<18} {'category':<14} {'level':<14} {'records':>9}"]
    rows += [
        f"{file:<12} {source:<18} {category:<14} {level:<14} {count:>9,}"
        for (file, source, category, level), count in sorted(cells.items())
    ]
    return Finding(True, "records by source, category and level", "\n".join(rows))


def _length_findings(survey: Survey) -> list[Finding]:
    if not survey.lengths:
        return []
    ordered = sorted(survey.lengths)
    middle, long = ordered[len(ordered) // 2], ordered[int(LONG * (len(ordered) - 1))]
    detail = f"median {middle:,}, 95 % {long:,}, longest {ordered[-1]:,} ({survey.longest[1]})"
    return [Finding(True, "characters per conversation", detail)]
