"""Shards → the result: one parquet, the exclusion list, the unreadable images, counts, and what the gallery shows.

The shards are read twice, one at a time: for the duplicates (some bytes per image are kept), then for all else.
Nothing here depends on time or on the number of processes, so the same shards give the same files, byte for byte.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from safevlm.analysis.audit import duplicates, verdicts
from safevlm.analysis.audit.duplicates import Fingerprints, Groups
from safevlm.analysis.audit.fingerprint import THUMB_BYTES
from safevlm.analysis.audit.plan import ShardPlan
from safevlm.analysis.audit.shards import Shards
from safevlm.analysis.audit.sources import arrow
from safevlm.analysis.audit.verdicts import Rule, Verdicts
from safevlm.data.atomic_write import atomic_file
from safevlm.data.exclude import line_of

AUDIT, EXCLUDE, UNREADABLE = "audit.parquet", "exclude.txt", "unreadable.jsonl"
LEFT_OUT = ("thumb",)
"""Columns of the shards that the result does not repeat."""
ADDED = {
    "category": "string",
    "level": "string",
    "action": "string",
    "risk": "float32",
    "exact_group": "int64",
    "near_group": "int64",
}
"""Columns that the result has beyond the shards. A group is the index of its first image; none: alone."""


@dataclass(frozen=True, order=True)
class Shown:
    """An image of the gallery; the larger, the surer."""

    probability: float
    before: int
    """Minus the index: among equals the first one is shown."""
    path: str = field(compare=False)
    category: str = field(compare=False)
    level: str = field(compare=False)

    @property
    def index(self) -> int:
        return -self.before


@dataclass
class AuditTally:
    """What is counted while the shards are read."""

    top: int
    """Images per category that the gallery shows."""
    unreadable: int = 0
    category: Counter[str] = field(default_factory=Counter)
    level: Counter[str] = field(default_factory=Counter)
    action: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    """By category."""
    shown: dict[str, list[Shown]] = field(default_factory=dict)

    def flag(self, one: Shown) -> None:
        """Counts a flagged image, and keeps the surest `top` of each category."""
        self.flagged[one.category] += 1
        heap = self.shown.setdefault(one.category, [])
        if len(heap) < self.top:
            heapq.heappush(heap, one)
        elif self.top:
            heapq.heappushpop(heap, one)


@dataclass(frozen=True)
class MergedAudit:
    tally: AuditTally
    groups: Groups


def merge(plan: ShardPlan, shards: Shards, rule: Rule, out: Path, top: int) -> MergedAudit:
    """Writes `audit.parquet`, `exclude.txt` and `unreadable.jsonl` from complete shards."""
    groups = duplicates.group(_fingerprints(plan, shards, out))
    tally = AuditTally(top)
    with ExitStack() as stack:
        writer = stack.enter_context(_parquet(out / AUDIT, shards))
        exclude, unreadable = (stack.enter_context(_text(out / name)) for name in (EXCLUDE, UNREADABLE))
        for table in tqdm(shards.tables(plan.shards), "merging", total=plan.shards, unit=" shards", leave=False):
            found = rule(*shards.probabilities(table))
            writer.write_table(_with_verdicts(table, found, groups, rule))
            _count(tally, found, rule)
            for row in np.flatnonzero(found.flagged):
                tally.flag(_shown(table, found, int(row), rule))
            _write_lists(table, found, exclude, unreadable)
    return MergedAudit(tally, groups)


def _fingerprints(plan: ShardPlan, shards: Shards, out: Path) -> Fingerprints:
    prints, start = Fingerprints.room(plan.images, out), 0
    for table in shards.tables(plan.shards, ["error", "pixels_sha256", "bits", "thumb"]):
        for batch in table.to_batches():
            rows = slice(start, start + len(batch))
            readable = np.array([not error for error in batch["error"].to_pylist()], bool)
            prints.readable[rows] = readable
            prints.bits[rows] = batch["bits"].to_numpy()
            where = np.flatnonzero(readable) + start
            digests = [bytes.fromhex(text[:32]) for text in batch["pixels_sha256"].to_pylist() if text]
            prints.digests[where] = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
            thumbs = b"".join(batch["thumb"].to_pylist())
            prints.thumbs[where] = np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB_BYTES)
            start += len(batch)
    return prints


def _with_verdicts(table: Any, found: Verdicts, groups: Groups, rule: Rule) -> Any:
    """A shard as the result shows it: verdicts and groups behind what was measured."""
    pa, taxonomy = arrow(), rule.policy.taxonomy
    indices = table["index"].to_numpy()
    values = {
        "category": _names(found.category, taxonomy.category_names),
        "level": _names(found.level, taxonomy.level_names),
        "action": found.actions,
        "risk": [risk if category >= 0 else None for risk, category in zip(found.risk, found.category, strict=True)],
        "exact_group": _or_none(groups.exact[indices]),
        "near_group": _or_none(groups.near[indices]),
    }
    for name, kind in ADDED.items():
        table = table.append_column(name, pa.array(values[name], pa.type_for_alias(kind)))
    return table.drop_columns(list(LEFT_OUT))


def _names(ids: np.ndarray, names: list[str]) -> list[str | None]:
    return [names[one] if one >= 0 else None for one in ids]


def _or_none(groups: np.ndarray) -> list[int | None]:
    return [one if one >= 0 else None for one in groups.tolist()]


def _count(tally: AuditTally, found: Verdicts, rule: Rule) -> None:
    taxonomy = rule.policy.taxonomy
    tally.unreadable += int((found.category < 0).sum())
    tally.category.update(verdicts.counts(found.category, taxonomy.category_names))
    tally.level.update(verdicts.counts(found.level, taxonomy.level_names))
    tally.action.update(action for action in found.actions if action)


def _shown(table: Any, found: Verdicts, row: int, rule: Rule) -> Shown:
    name = rule.policy.taxonomy.category_names[found.category[row]]
    return Shown(
        probability=table[f"category_{name}"][row].as_py(),
        before=-table["index"][row].as_py(),
        path=table["path"][row].as_py(),
        category=name,
        level=rule.policy.taxonomy.level_names[found.level[row]],
    )


def _write_lists(table: Any, found: Verdicts, exclude: IO[str], unreadable: IO[str]) -> None:
    for row in np.flatnonzero(found.flagged):
        exclude.write(line_of(table["file"][row].as_py() or table["path"][row].as_py()))
    for row in np.flatnonzero(found.category < 0):
        line = {"path": table["path"][row].as_py(), "error": table["error"][row].as_py()}
        unreadable.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextmanager
def _parquet(path: Path, shards: Shards) -> Iterator[Any]:
    """A parquet file to write tables to; it has its name only when all went well."""
    pa = arrow()
    kept = [one for one in shards.schema if one.name not in LEFT_OUT]
    schema = pa.schema([*kept, *(pa.field(name, pa.type_for_alias(kind)) for name, kind in ADDED.items())])
    # several processes may find all shards complete at once; each writes its own file, all of them the same
    with atomic_file(path) as partial, arrow("parquet").ParquetWriter(partial, schema, compression="zstd") as writer:
        yield writer


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        yield file
