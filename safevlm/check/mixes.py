"""A mix: its YAML, source by source, or the folder that was made of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safevlm.check.data_images import held_out_images
from safevlm.check.findings import Finding, finding_of, outcome
from safevlm.check.records import check_records
from safevlm.check.survey import Offenders
from safevlm.data import mix, mix_build, mix_report
from safevlm.data.mix_file import read_mix
from safevlm.data.record_rows import ENDINGS
from safevlm.data.sources.fingerprints import file_digest
from safevlm.taxonomy import DEFAULT, read_taxonomy


def check_mix_file(file: Path, against: Sequence[Path]) -> list[Finding]:
    """Every source for itself, then the draw and the comparison with what is held out."""
    with TemporaryDirectory() as scratch:
        made_mix = mix_build.without_writing(read_mix(file, file.parent), Path(scratch))
        there = [spec for spec in made_mix.sources if spec.path.exists()]
        scans = [outcome(partial(mix.scan, made_mix, spec)) for spec in there]
        findings = [_scan_finding(spec.name, one) for spec, one in zip(there, scans, strict=True)]
        findings.append(finding_of(outcome(lambda: mix.split_absent(made_mix.sources)), _absent_told))
        good = tuple(one for one in scans if isinstance(one, mix.Scan))
        if not all(finding.ok for finding in findings):
            return findings
        absent = tuple(spec.name for spec in made_mix.sources if not spec.path.exists())
        made = outcome(lambda: mix.plan_of(made_mix, good, absent))
        if not isinstance(made, mix.MixPlan):
            return [*findings, Finding(False, str(made))]
        compared = outcome(lambda: mix_build.compare(made, held_out_images(against)))
        findings.append(finding_of(compared, _compared_told))
        table = mix_report.lines({**mix_report.report_of(made), "held_out": {}})
    return [*findings, Finding(True, "the mix", "\n".join(table))]


def _scan_finding(name: str, outcome: Any) -> Finding:
    return finding_of(outcome, lambda scan: f"{name}: {scan.rows:,} rows read, {len(scan.candidates):,} usable")


def _absent_told(outcome: tuple[Any, tuple[str, ...]]) -> str:
    absent = outcome[1]
    return f"sources that are not there, and may be missing: {', '.join(absent)}" if absent else "all sources are there"


def _compared_told(compared: dict[str, Any]) -> str:
    there = [f"{name} ({row['images']:,})" for name, row in compared.items() if row]
    gone = [name for name, row in compared.items() if not row]
    told = f"no image shared with what is held out: {', '.join(there) or 'nothing is'}"
    return told + (f"; NOT compared with {', '.join(gone)}, not there" if gone else "")


def check_mix_folder(folder: Path, taxonomy: Path | None, against: Sequence[Path], images: str) -> list[Finding]:
    """Its digests, what it was made of, and its record files."""
    report_file = folder / mix_build.REPORT
    report = mix_report.read_report(report_file)
    files = report["files"]
    findings = [_digest_finding(folder, files)]
    records = [folder / name for name in files if Path(name).suffix in ENDINGS and (folder / name).is_file()]
    own = folder / "taxonomy.yaml"
    file = taxonomy or (own if own.is_file() else None)
    known = read_taxonomy(file)[0] if file else DEFAULT
    findings.append(
        Finding(True, f"made from {report.get('mix')}, seed {report.get('seed')}", "\n".join(mix_report.lines(report)))
    )
    return [*findings, *check_records(records, known, against, images)]


def _digest_finding(folder: Path, files: dict[str, Any]) -> Finding:
    changed = Offenders()
    for name, row in files.items():
        if not (folder / name).is_file():
            changed.add(f"{name}: missing")
        elif file_digest(folder / name) != row["sha256"]:
            changed.add(f"{name}: changed since it was made")
    return changed.finding(f"files are those that {mix_build.REPORT} names", len(files))
