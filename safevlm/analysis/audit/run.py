"""One audit from DATA to the result: list → claim the folder → scan → merge, by whoever finds all shards complete.

OUT/run.json          what the shards were made with; another audit is refused
OUT/shards/           one file per shard, probabilities only
OUT/audit.parquet     a row per image: names, digests, verdict, groups of duplicates, probabilities
OUT/exclude.txt       flagged images, for `data.exclude` of a training recipe
OUT/unreadable.jsonl  images that could not be read, and why
OUT/summary.json      counts, corrected ones with a calibration
OUT/gallery.html      the surest finds
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safevlm.analysis.audit import bench, calibration, estimate, fingerprint, gallery, manifest, summary
from safevlm.analysis.audit.merge import UNREADABLE, merge
from safevlm.analysis.audit.plan import ShardPlan, make_plan
from safevlm.analysis.audit.risk_classifier import QUESTION, RiskClassifier
from safevlm.analysis.audit.scan import scan
from safevlm.analysis.audit.shards import Shards, open_shards
from safevlm.analysis.audit.sources import open_source
from safevlm.analysis.audit.verdicts import Rule
from safevlm.data.atomic_write import write_text
from safevlm.data.made_by import Places, write_result
from safevlm.defenses.policy import read_policy
from safevlm.model import loading
from safevlm.sharding import local_rank, owned, share_of
from safevlm.taxonomy import CLEAN
from safevlm.usage import UsageError

BENCH, LOCK = "bench.json", ".audit.lock"


@dataclass(frozen=True)
class AuditSettings:
    """The flags of `safevlm audit`."""

    data: Path
    model: str
    out: Path
    images: str = ""
    column: str = ""
    base: str | None = None
    device: str = "auto"
    batch_size: int = 64
    workers: int = 0
    """Threads that decode; 0: one per core, at most 16."""
    threads: int = 0
    """Threads of a CPU model; 0: torch's choice."""
    shard_size: int = 2_048
    shard: str | None = None
    question: str = QUESTION
    calibration: Path | None = None
    threshold: float | None = None
    policy: str | None = None
    top: int = 24
    bench: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        for name in ("workers", "threads", "top"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)}: not below 0")

    @property
    def decoders(self) -> int:
        return self.workers or min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class AuditOutcome:
    """What one process did."""

    scanned: int
    """Images."""
    shards: int
    missing: int
    """Shards that other processes have not made yet; 0: the result is there."""
    summary: Mapping[str, Any] | None = None
    bench: Mapping[str, Any] | None = None


def audit(settings: AuditSettings) -> AuditOutcome:
    """Runs this process's share; the one that finds all shards complete writes the result."""
    share = share_of(settings.shard)
    plan = make_plan(open_source(settings.data, settings.images, settings.column), settings.shard_size)
    with _threads(settings.threads):
        classifier = RiskClassifier.load(
            settings.model, device=_device(settings), base=settings.base, question=settings.question
        )
        rule = Rule(
            read_policy(settings.policy, classifier.taxonomy, classifier.model.config.policy), settings.threshold
        )
        with owned(settings.out / LOCK, share):
            manifest.claim(settings.out, _fixed(settings, plan, classifier))
            shards = open_shards(settings.out, classifier.taxonomy)
            scanned = scan(plan, shards, classifier, share, batch_size=settings.batch_size, workers=settings.decoders)
            timed = _bench(settings, plan, classifier) if settings.bench else None
            missing = len(shards.missing(plan.shards))
            told = None if missing else _finish(settings, plan, shards, classifier, rule)
    return AuditOutcome(scanned, plan.shards, missing, told, timed)


def check_readable(outcome: AuditOutcome, settings: AuditSettings) -> None:
    """ValueError: the audit is finished, and not one image could be read."""
    told = outcome.summary
    if told is None or not told["images"] or told["unreadable"] < told["images"]:
        return
    listed = settings.out / UNREADABLE
    with listed.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    raise ValueError(
        f"{settings.data}: nothing in it can be read: {first['path']}: {first['error']}"
        + (f"; {listed} lists all {told['images']:,}" if told["images"] > 1 else "")
    )


def lines(outcome: AuditOutcome, settings: AuditSettings) -> Iterator[str]:
    """An outcome for people."""
    done = outcome.shards - outcome.missing
    yield f"{outcome.scanned:,} images scanned; {done} of {outcome.shards} shards are there"
    if outcome.bench:
        yield from bench.lines(outcome.bench)
    if outcome.summary is None:
        yield f"not finished: {outcome.missing} shards are for other processes; the last one to end writes the result"
        return
    yield from summary.lines(outcome.summary)
    yield f"done: {settings.out}"


def _fixed(settings: AuditSettings, plan: ShardPlan, classifier: RiskClassifier) -> dict[str, Any]:
    """What shards depend on. Threshold, policy and the like do not count: they are applied to finished shards."""
    return {
        "schema": 1,
        "images": plan.images,
        "data_digest": plan.digest,
        "model_digest": classifier.digest(),
        "taxonomy": classifier.taxonomy.to_dict(),
        "shard_size": settings.shard_size,
        "batch_size": settings.batch_size,
        "device": classifier.device.type,
        "threads": torch.get_num_threads() if classifier.device.type == "cpu" else None,
        "question": classifier.question if classifier.reads_text else None,
        "fingerprint": [fingerprint.GRID, fingerprint.SIDE, fingerprint.GREY, fingerprint.COLOUR],
        "fingerprint_gap": fingerprint.GAP,
    }


def _finish(
    settings: AuditSettings, plan: ShardPlan, shards: Shards, classifier: RiskClassifier, rule: Rule
) -> dict[str, Any]:
    names = classifier.taxonomy.category_names
    errors = None
    if settings.calibration is not None:
        errors = calibration.confusion(
            settings.calibration, classifier, rule, batch_size=settings.batch_size, workers=settings.decoders
        )
    merged = merge(plan, shards, rule, settings.out, settings.top)
    reported = [merged.tally.category[name] for name in names]
    found = None if errors is None else estimate.estimate(reported, errors, names, names.index(CLEAN))
    told = summary.summarize(str(settings.data), str(settings.model), plan, merged, rule, found)
    write_result(settings.out / summary.SUMMARY, told, _inputs(settings), unbounded=True)
    write_text(settings.out / gallery.GALLERY, gallery.page(gallery.cards(plan, merged.tally.shown, names), told))
    return told


def _bench(settings: AuditSettings, plan: ShardPlan, classifier: RiskClassifier) -> dict[str, Any]:
    timed = bench.bench(plan, classifier, batch_size=settings.batch_size, workers=settings.decoders)
    write_result(settings.out / BENCH, timed, _inputs(settings))
    return timed


def _inputs(settings: AuditSettings) -> dict[str, Places]:
    """The data's own digest stands in the manifest."""
    return {"model": settings.model, "calibration": settings.calibration or ""}


def _device(settings: AuditSettings) -> torch.device:
    """Under torchrun each process takes the GPU of its local rank."""
    device = loading.default_device(settings.device)
    local = local_rank()
    return device if local is None or device.type != "cuda" or device.index is not None else torch.device("cuda", local)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The last bits of a CPU's sums depend on how many threads share them, so their number is part of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
