"""Whether data are fit to train on: record files, the YAML of a mix, or a mix that was made.

Records are read one at a time and images in threads, so a million records fit; what is kept of each is a few
numbers. Everything is counted, the first offenders are named. Trap: an image that several records share is no defect,
but one that is harmless in one of them and risky in another is.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safevlm.check.findings import Finding
from safevlm.data import mix, mix_build, mix_report, packed_images
from safevlm.data.conversations import image_refs
from safevlm.data.images import decode_image
from safevlm.data.json_rows import RowError
from safevlm.data.mix_file import read_mix
from safevlm.data.record_rows import record_rows
from safevlm.data.records import (
    AnswerError,
    DialogueError,
    LabelError,
    MissingImageError,
    Record,
    RecordError,
    SlotError,
    parse_record,
)
from safevlm.data.sources.fingerprints import HeldOut, file_digest
from safevlm.data.sources.images import ImageIndex, image_files
from safevlm.data.sources.row import ImageFile
from safevlm.data.threads import in_threads
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE, Taxonomy, read_taxonomy

NAMED = 10
"""Offenders named in a finding; all are counted."""
NO_LABEL = "–"
MIX_ENDINGS = (".yaml", ".yml")
RECORD_ENDINGS = (".json", ".jsonl")
LONG = 0.95
"""Quantile of lengths that is told beside median and maximum."""
FAILURES = (ValueError, OSError, ImportError)

DEFECTS: dict[type[RowError], str] = {
    AnswerError: "every conversation has an answer, and none is empty",
    DialogueError: "questions and answers alternate",
    SlotError: "image slots match the images",
    LabelError: "labels are known to the taxonomy and do not contradict each other",
    MissingImageError: "image files are there",
    RecordError: "records are well-formed",
}


@dataclass
class Offenders:
    """How many, and the first of them."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, which: str) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(which)

    def finding(self, title: str, of: int | None = None, detail: str = "") -> Finding:
        if not self.count:
            return Finding(True, title, detail)
        more = [f"… and {self.count - len(self.named)} more"] if self.count > len(self.named) else []
        share = f"{self.count:,}" + (f" of {of:,}" if of is not None else "")
        return Finding(False, f"{title}: not so in {share}", "\n".join([*self.named, *more]))


@dataclass
class Survey:
    """What one pass over the records keeps."""

    taxonomy: Taxonomy
    records: int = 0
    defects: dict[type[RowError], Offenders] = field(default_factory=lambda: {kind: Offenders() for kind in DEFECTS})
    cells: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """(file, source, category, level) → records."""
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Image → (category, level) of the first labelled record of it, -1: no label. Texts: Paths take thrice that."""
    contradicted: Offenders = field(default_factory=Offenders)
    """Images that are harmless in one record and risky in another."""
    relabelled: Offenders = field(default_factory=Offenders)
    """Images with two labels otherwise; questions about one image may be of different levels."""
    lengths: array[int] = field(default_factory=lambda: array("L"))
    """Characters of each conversation."""
    longest: tuple[int, str] = (0, "")
    seen: set[bytes] = field(default_factory=set)
    """Digests of the records of one file; the next file may hold the same ones (stage 2 holds stage 1)."""
    repeated: Offenders = field(default_factory=Offenders)

    def add(self, record: Record, file: str) -> None:
        self.cells[file, record.source or NO_LABEL, *self._names(record)] += 1
        length = sum(len(part.get("text", "")) for message in record.lm_messages for part in message["content"])
        self.longest = max(self.longest, (length, record.place))
        self.lengths.append(length)
        self._add_images(record)
        key = hashlib.blake2b(f"{record.images}{record.messages}".encode(), digest_size=12).digest()
        if key in self.seen:
            self.repeated.add(record.place)
        self.seen.add(key)

    def _names(self, record: Record) -> tuple[str, str]:
        category = NO_LABEL if record.safe_type is None else self.taxonomy.category_names[record.safe_type]
        return category, NO_LABEL if record.safe_level is None else self.taxonomy.level_names[record.safe_level]

    def _add_images(self, record: Record) -> None:
        label = _label_of(record)
        for path in map(str, record.images):
            known = self.images.get(path, label)
            self.compare(known, label, f"{record.place}: {path}")
            self.images[path] = label if -1 in known else known

    def compare(self, one: tuple[int, int], other: tuple[int, int], where: str) -> None:
        """Notes two different labels of one image."""
        if -1 in (*one, *other) or one == other:
            return
        (self.contradicted if self._is_clean(one) != self._is_clean(other) else self.relabelled).add(where)

    def _is_clean(self, label: tuple[int, int]) -> bool:
        return label[0] == self.taxonomy.category_id(CLEAN) or label[1] == self.taxonomy.level_id(SAFE)


def check_data(
    path: Path, *, taxonomy: Path | None = None, against: Sequence[Path] = (), images: str = ""
) -> list[Finding]:
    """Everything that is wrong with data, and what they are made of. `against`: held-out data, compared by content."""
    path, against = Path(path), [Path(one) for one in against]
    try:
        if path.suffix in MIX_ENDINGS:
            return _check_mix_file(path, against)
        if path.is_dir():
            return _check_mix_folder(path, taxonomy, against, images)
        return _check_records([path], _taxonomy(taxonomy), against, images)
    except FAILURES as error:
        return [Finding(False, str(error))]


def _taxonomy(file: Path | None) -> Taxonomy:
    return read_taxonomy(file)[0] if file else DEFAULT


# records


def _check_records(files: Sequence[Path], taxonomy: Taxonomy, against: Sequence[Path], images: str) -> list[Finding]:
    survey = Survey(taxonomy)
    for file in files:
        _survey(survey, file, Path(images) if images else file.parent)
    findings = [_count_finding(files, survey)]
    if not survey.records:
        return findings
    findings += [survey.defects[kind].finding(title, survey.records) for kind, title in DEFECTS.items()]
    findings += _image_findings(survey, against)
    repeated = _told("records that stand there twice, word for word", survey.repeated)
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
    return Finding(True, f"{names}: {survey.records:,} records, {len(survey.images):,} images")


def _told(what: str, which: Offenders) -> Finding:
    """Something to know that is no defect."""
    return Finding(True, f"{what}: {which.count:,}", "\n".join(which.named))


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


# images


@dataclass(frozen=True)
class _Seen:
    path: str
    digest: bytes = b""
    error: str = ""
    held_out: ImageFile | None = None


def _image_findings(survey: Survey, against: Sequence[Path]) -> list[Finding]:
    held = _outcome(lambda: HeldOut(_held_out_images(against))) if against else None
    if isinstance(held, Exception):
        return [Finding(False, f"nothing was compared: {held}"), *_image_findings(survey, ())]
    unreadable, leaks, several = Offenders(), Offenders(), Offenders()
    first: dict[bytes, str] = {}
    for seen in in_threads(_check_with(held), survey.images, "checking images", len(survey.images)):
        if seen.error:
            unreadable.add(seen.error)
            continue
        if seen.held_out is not None:
            leaks.add(f"{seen.path} = {seen.held_out}")
        known = first.setdefault(seen.digest, seen.path)
        if known != seen.path:
            several.add(f"{seen.path} = {known}")
            survey.compare(survey.images[known], survey.images[seen.path], f"{seen.path} = {known}")
    findings = [
        unreadable.finding("all images can be read", len(survey.images)),
        survey.contradicted.finding("no image is harmless in one record and risky in another"),
        _told("images with several levels or categories", survey.relabelled),
        _told("images that are the same file under several names", several),
    ]
    if held is not None:
        title = f"no image is among the {len(held):,} held-out ones of {', '.join(map(str, against))}"
        findings.append(leaks.finding(title, len(survey.images)))
    return findings


def _check_with(held: HeldOut | None) -> Callable[[str], _Seen]:
    def check(path: str) -> _Seen:
        try:
            data = Path(path).read_bytes()
            decode_image(data, path)
        except (ValueError, OSError) as error:
            return _Seen(path, error=str(error))
        match = held.match(ImageFile(Path(path)), data) if held is not None else None
        return _Seen(path, hashlib.blake2b(data, digest_size=16).digest(), held_out=match)

    return check


def _label_of(record: Record) -> tuple[int, int]:
    return (
        -1 if record.safe_type is None else record.safe_type,
        -1 if record.safe_level is None else record.safe_level,
    )


def _held_out_images(places: Iterable[Path]) -> set[ImageFile]:
    """Images of record files, image folders, zips, and of what a mix file holds out. An empty place is an error."""
    found: set[ImageFile] = set()
    for place in places:
        images = set(_images_of(place))
        if not images:
            raise ValueError(f"{place}: no images to compare with; name a record file, an image folder or a mix")
        found |= images
    return found


def _images_of(place: Path) -> Iterator[ImageFile]:
    if place.suffix in MIX_ENDINGS:
        with TemporaryDirectory() as scratch:
            made = mix_build.without_writing(read_mix(place, place.parent), Path(scratch))
            yield from (image for found in mix_build.held_out_images(made).values() for image in found)
    elif place.is_dir():
        yield from map(ImageFile, image_files(place))
    elif place.suffix == ".zip":
        yield from ImageIndex([place])
    else:
        yield from _record_images(place)


def _record_images(file: Path) -> Iterator[ImageFile]:
    packed = packed_images.folder_of(file)
    for place, raw in record_rows(file):
        for ref in image_refs(raw) if isinstance(raw, dict) else ():
            path = file.parent / ref if isinstance(ref, str) else packed_images.store(ref, place, packed)
            if not path.is_file():
                raise MissingImageError(f"{place}: no such image file {path}; compare with the folder of the images")
            yield ImageFile(path)


# mixes


def _check_mix_file(file: Path, against: Sequence[Path]) -> list[Finding]:
    """Every source for itself, then the draw and the comparison with what is held out."""
    with TemporaryDirectory() as scratch:
        made_mix = mix_build.without_writing(read_mix(file, file.parent), Path(scratch))
        there = [spec for spec in made_mix.sources if spec.path.exists()]
        scans = [_outcome(partial(mix.scan, made_mix, spec)) for spec in there]
        findings = [_scan_finding(spec.name, one) for spec, one in zip(there, scans, strict=True)]
        findings.append(_finding_of(_outcome(lambda: mix.split_absent(made_mix.sources)), _absent_told))
        good = tuple(one for one in scans if isinstance(one, mix.Scan))
        if not all(finding.ok for finding in findings):
            return findings
        absent = tuple(spec.name for spec in made_mix.sources if not spec.path.exists())
        made = _outcome(lambda: mix.plan_of(made_mix, good, absent))
        if not isinstance(made, mix.MixPlan):
            return [*findings, Finding(False, str(made))]
        compared = _outcome(lambda: mix_build.compare(made, _held_out_images(against)))
        findings.append(_finding_of(compared, _compared_told))
        table = mix_report.lines({**mix_report.report_of(made), "held_out": {}})
    return [*findings, Finding(True, "the mix", "\n".join(table))]


def _outcome(work: Callable[[], Any]) -> Any:
    """The result, or the error as a value."""
    try:
        return work()
    except FAILURES as error:
        return error


def _finding_of(outcome: Any, told: Callable[[Any], str]) -> Finding:
    return Finding(False, str(outcome)) if isinstance(outcome, Exception) else Finding(True, told(outcome))


def _scan_finding(name: str, outcome: Any) -> Finding:
    return _finding_of(outcome, lambda scan: f"{name}: {scan.rows:,} rows read, {len(scan.candidates):,} usable")


def _absent_told(outcome: tuple[Any, tuple[str, ...]]) -> str:
    absent = outcome[1]
    return f"sources that are not there, and may be missing: {', '.join(absent)}" if absent else "all sources are there"


def _compared_told(compared: dict[str, Any]) -> str:
    there = [f"{name} ({row['images']:,})" for name, row in compared.items() if row]
    gone = [name for name, row in compared.items() if not row]
    told = f"no image shared with what is held out: {', '.join(there) or 'nothing is'}"
    return told + (f"; NOT compared with {', '.join(gone)}, not there" if gone else "")


def _check_mix_folder(folder: Path, taxonomy: Path | None, against: Sequence[Path], images: str) -> list[Finding]:
    report_file = folder / mix_build.REPORT
    if not report_file.is_file():
        raise ValueError(f"{folder}: neither a record file nor a mix; a mix folder holds {mix_build.REPORT}")
    try:
        report = json.loads(report_file.read_text(encoding="utf-8"))
        files = report["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{report_file}: not the report of a mix: {error}") from error
    findings = [_digest_finding(folder, files)]
    records = [folder / name for name in files if Path(name).suffix in RECORD_ENDINGS and (folder / name).is_file()]
    own = folder / "taxonomy.yaml"
    known = _taxonomy(taxonomy or (own if own.is_file() else None))
    findings.append(
        Finding(True, f"made from {report.get('mix')}, seed {report.get('seed')}", "\n".join(mix_report.lines(report)))
    )
    return [*findings, *_check_records(records, known, against, images)]


def _digest_finding(folder: Path, files: dict[str, Any]) -> Finding:
    changed = Offenders()
    for name, row in files.items():
        if not (folder / name).is_file():
            changed.add(f"{name}: missing")
        elif file_digest(folder / name) != row["sha256"]:
            changed.add(f"{name}: changed since it was made")
    return changed.finding(f"files are those that {mix_build.REPORT} names", len(files))
