"""Which records a run sees: a draw of clean ones at training time, and the plan of a mix made of many sources.

A plan reads every source once and remembers rows by number; `safevlm.data.mix_build` reads them again and writes what
was drawn. Same file, same seed, same data: the same plan.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from safevlm.data import answers
from safevlm.data.conversations import ROLES, RecordTurn
from safevlm.data.dialogues import answer_fault, order_fault
from safevlm.data.labels import KEPT, OVERRULED, REFUSED, Label
from safevlm.data.mix_file import STAGES, Counts, Mix, MixError
from safevlm.data.record_facts import are_clean, facts_of
from safevlm.data.record_table import choose
from safevlm.data.records import Record
from safevlm.data.sources import read_source, source_of
from safevlm.data.sources.row import HELD_OUT_SPLITS, Rows, SourceRow, SourceSpec
from safevlm.data.sources.row import Counts as RowCounts
from safevlm.taxonomy import Taxonomy

NAMED = 5
"""Offenders named in an error; all are counted."""
LISTED = 10_000
"""Missing images that are remembered by name."""


def draw_clean(records: Sequence[Record], taxonomy: Taxonomy, clean: int | None, seed: int) -> Sequence[Record]:
    """All risky and unlabelled records and `clean` of the clean ones (all, if there are fewer; None: all), in order.

    SafeVLM's stage 1 takes all risky records and 3,000 clean ones (methods §1.5).
    """
    is_kept = ~are_clean(facts_of(records), taxonomy)
    rows = np.flatnonzero(~is_kept)
    if clean is None or clean >= len(rows):
        return records
    is_kept[rows[random.Random(seed).sample(range(len(rows)), clean)]] = True
    return choose(records, np.flatnonzero(is_kept))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that may be drawn."""

    source: str
    index: int
    """Number of the row in its source."""
    label: Label
    is_head_only: bool = False
    """It has no answer: it can train the head, and no words."""


@dataclass
class Scan:
    """What a source holds."""

    spec: SourceSpec
    rows: int = 0
    counts: RowCounts = field(default_factory=dict)
    """By part of the source: rows found, rows published."""
    dropped: int = 0
    over_limit: int = 0
    without_image: int = 0
    """Rows left out because an image of theirs is not in the download."""
    missing: list[str] = field(default_factory=list)
    """`place: image` of the first of them, `LISTED` at most."""
    unusable: list[str] = field(default_factory=list)
    """Rows left out because their dialogue or their own labels cannot be: what is wrong with them, `LISTED` at most."""
    without_use: int = 0
    """How many those are."""
    own_labels: dict[str, Counter[str]] = field(default_factory=lambda: {KEPT: Counter(), OVERRULED: Counter()})
    """Labels of the rows' own that were kept against a rule, or overruled by it: by rule."""
    candidates: list[Candidate] = field(default_factory=list)

    def leave_out(self, what: str) -> None:
        self.without_use += 1
        self.unusable += [what] if len(self.unusable) < LISTED else []


@dataclass(frozen=True)
class MixPlan:
    mix: Mix
    scans: tuple[Scan, ...]
    absent: tuple[str, ...]
    """Sources that are not on the disk, and may be missing."""
    found: Mapping[str, int]
    """Candidates by category."""
    pool: tuple[Candidate, ...]
    stages: Mapping[str, tuple[Candidate, ...]]
    short: tuple[str, ...]
    """What there was less of than asked for, if that is allowed."""


def plan(mix: Mix) -> MixPlan:
    """Reads the sources and draws. MixError: a source that is missing, too small, or not fit to train on."""
    present, absent = split_absent(mix.sources)
    return plan_of(mix, tuple(scan(mix, spec) for spec in present), absent)


def plan_of(mix: Mix, scans: tuple[Scan, ...], absent: tuple[str, ...]) -> MixPlan:
    """The draw, from sources that have been read."""
    candidates = [candidate for one in scans for candidate in one.candidates]
    pool, short = draw(candidates, mix.counts, f"{mix.seed}/pool", "counts")
    stages: dict[str, tuple[Candidate, ...]] = {}
    for name, counts in mix.stages.items():
        speaks = [candidate for candidate in pool if STAGES[name].takes_unanswered or not candidate.is_head_only]
        stages[name], lacking = draw(speaks, counts, f"{mix.seed}/{name}", f"stages.{name}")
        short += lacking
    if short and mix.short == "error":
        raise MixError(f"{mix.file}: {'; '.join(short)}. Ask for fewer, add sources, or set `short: allow`")
    found = Counter(candidate.label.bucket for candidate in candidates)
    return MixPlan(mix, scans, absent, dict(found), tuple(pool), stages, tuple(short))


def split_absent(specs: Iterable[SourceSpec]) -> tuple[list[SourceSpec], tuple[str, ...]]:
    """Sources that are there, and names of those that are not and need not be. MixError lists those that must."""
    specs = list(specs)
    absent = [spec for spec in specs if not spec.path.exists()]
    needed = [f"{spec.name} ({spec.path})" for spec in absent if spec.missing == "error"]
    if needed:
        raise MixError(f"sources that are not there: {', '.join(needed)}; download them, or set `missing: allow`")
    return [spec for spec in specs if spec.path.exists()], tuple(spec.name for spec in absent)


def scan(mix: Mix, spec: SourceSpec) -> Scan:
    """Reads a source and labels its rows; MixError says what is wrong with how many of them, naming the first."""
    made = Scan(spec)
    problems = _Problems()
    for index, row in enumerate(_counted(read_source(spec), made)):
        made.rows += 1
        left_out = made.without_use
        candidate = _candidate(mix, row, index, made, problems)
        if candidate is None:
            made.dropped += made.without_use == left_out
        elif row.missing:
            made.without_image += 1
            made.missing += [f"{row.place}: {name}" for name in row.missing[: LISTED - len(made.missing)]]
        else:
            made.candidates.append(candidate)
    problems.check_missing(made)
    problems.raise_any(f"{mix.file}: {spec.name}")
    return _limited(made, mix.seed)


def _counted(rows: Rows, made: Scan) -> Iterator[SourceRow]:
    made.counts = yield from rows


class _Problems:
    """Rows with something wrong: how many, and the first of them, by what it is."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, what: str, which: str) -> None:
        self._counts[what] += 1
        named = self._first.setdefault(what, [])
        if len(named) < NAMED and which not in named:
            named.append(which)

    def check_missing(self, made: Scan) -> None:
        if made.spec.missing_images == "error" and made.missing:
            what = "rows whose image is not in the download (mend it, or set `missing_images: allow`)"
            self._counts[what] = made.without_image
            self._first[what] = made.missing[:NAMED]

    def raise_any(self, where: str) -> None:
        if self._counts:
            told = [f"{count} {what}: {', '.join(self._first[what])}" for what, count in self._counts.items()]
            raise MixError(f"{where}: {'; '.join(told)}")


def _candidate(mix: Mix, row: SourceRow, index: int, made: Scan, problems: _Problems) -> Candidate | None:
    """None: dropped, left out, or a problem that was noted."""
    spec = made.spec
    if row.split in HELD_OUT_SPLITS:
        problems.add(f"rows of split {row.split!r}, which no training mix may hold", row.id)
        return None
    try:
        label = _label(mix, row, made, problems)
        speaks = (spec.answers == "source" and row.has_answer) or (
            label is not None and answer_of(mix, row, spec, label) is not None
        )
        if label is not None:
            _check_dialogue(row, spec)
    except LookupError as error:
        problems.add("rows without a label; add a rule to `labels`", str(error.args[0]))
        return None
    except ValueError as error:
        if spec.unusable == "error":
            problems.add("rows that cannot be (mend them, or set `unusable: allow`)", str(error))
        else:
            made.leave_out(str(error))
        return None
    if label is None:
        return None
    if not speaks and spec.head_only == "error":
        problems.add(_no_answer(label), row.place)
    return Candidate(spec.name, index, label, is_head_only=not speaks)


def _label(mix: Mix, row: SourceRow, made: Scan, problems: _Problems) -> Label | None:
    keeps = source_of(made.spec.kind, made.spec.name).keeps_labels
    ruling = mix.labels.ruling(made.spec.name, row, keeps)
    if ruling.own == REFUSED:
        problems.add(f"rows whose own label the rule {ruling.rule!r} overrules (say so: `relabel: true`)", row.place)
    elif ruling.own:
        made.own_labels[ruling.own][ruling.rule] += 1
    return ruling.label


def _check_dialogue(row: SourceRow, spec: SourceSpec) -> None:
    """ValueError: turns that no record may have; answers that are not used do not matter."""
    if spec.answers == "table" or not row.has_answer:
        return
    said = [RecordTurn(ROLES[speaker], text).said() for speaker, text in row.turns]
    fault = order_fault(said) or answer_fault(said)
    if fault:
        raise ValueError(f"{row.place}: {fault}")


def _no_answer(label: Label) -> str:
    key = label.level or "LEVEL"
    return f"rows without an answer (give captions, or `answers: {{{key}: [...]}}`, or `head_only: allow`)"


def answer_of(mix: Mix, row: SourceRow, spec: SourceSpec, label: Label) -> str | None:
    """The wording for a row that brings no answer, or None."""
    if label.category is None or label.level is None:
        return None
    return answers.answer(
        mix.answers, mix.taxonomy, label.category, label.level, f"{mix.seed}/answer/{spec.name}/{row.id}"
    )


def _limited(made: Scan, seed: int) -> Scan:
    limit, count = made.spec.limit, len(made.candidates)
    if limit is not None and count > limit:
        rng = random.Random(f"{seed}/limit/{made.spec.name}")
        made.candidates = [made.candidates[index] for index in sorted(rng.sample(range(count), limit))]
        made.over_limit = count - limit
    return made


def draw(
    candidates: Sequence[Candidate], counts: Counts, seed: str, where: str
) -> tuple[tuple[Candidate, ...], list[str]]:
    """So many of each category, in order; and what was short. Each category has a draw of its own."""
    by_bucket: dict[str, list[int]] = {name: [] for name in counts}
    for index, candidate in enumerate(candidates):
        by_bucket.setdefault(candidate.label.bucket, []).append(index)
    chosen: list[int] = []
    short = []
    for name, rows in by_bucket.items():
        asked = counts.get(name)
        if asked is not None and asked > len(rows):
            short.append(f"{where}.{name}: {asked} asked for, {len(rows)} found")
        chosen += rows if asked is None or asked >= len(rows) else random.Random(f"{seed}/{name}").sample(rows, asked)
    return tuple(candidates[index] for index in sorted(chosen)), short


def taken_rows(made: MixPlan) -> Iterator[tuple[Candidate, SourceRow]]:
    """The rows of the pool, read once more, in order."""
    wanted: dict[str, dict[int, Candidate]] = {}
    for candidate in made.pool:
        wanted.setdefault(candidate.source, {})[candidate.index] = candidate
    for one in made.scans:
        of_source = wanted.get(one.spec.name, {})
        for index, row in enumerate(read_source(one.spec)) if of_source else ():
            if index in of_source:
                yield of_source[index], row
