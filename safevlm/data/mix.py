"""Which records a run sees: a draw of clean ones at training time, and the plan of a mix made of many sources.

A plan reads every source once, writes its rows down (`safevlm.data.row_spool`) and remembers of a row its number and
label (`safevlm.data.candidates`); `safevlm.data.mix_build` writes what was drawn. Same file, same seed, same data: the
same plan.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from safevlm.data import answers
from safevlm.data.candidates import CandidateColumns, Candidates, Rows, draw, joined
from safevlm.data.conversations import IMAGE, ROLES, RecordTurn
from safevlm.data.dialogues import answer_fault, has_words, order_fault
from safevlm.data.labels import KEPT, OVERRULED, REFUSED, Label
from safevlm.data.mix_file import STAGES, Mix, MixError
from safevlm.data.record_facts import are_clean, facts_of
from safevlm.data.record_table import choose
from safevlm.data.records import Record
from safevlm.data.row_spool import RowSpool
from safevlm.data.sources import read_source, source_of
from safevlm.data.sources.images import EmptyCells
from safevlm.data.sources.row import HELD_OUT_SPLITS, SourceRow, SourceSpec, Turn
from safevlm.data.sources.row import Counts as RowCounts
from safevlm.data.sources.row import Rows as SourceRows
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
    candidates: Candidates = field(default_factory=lambda: CandidateColumns().made())
    spool: RowSpool = field(default_factory=RowSpool)
    """The rows of the candidates."""

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
    pool: Candidates
    """Rows that are taken; `source` is an index in `scans`."""
    stages: Mapping[str, Rows]
    """Which of the pool each stage sees."""
    short: tuple[str, ...]
    """What there was less of than asked for, if that is allowed."""


def plan(mix: Mix) -> MixPlan:
    """Reads the sources and draws. MixError: a source that is missing, too small, or not fit to train on."""
    present, absent = split_absent(mix.sources)
    return plan_of(mix, tuple(scan(mix, spec) for spec in present), absent)


def plan_of(mix: Mix, scans: tuple[Scan, ...], absent: tuple[str, ...]) -> MixPlan:
    """The draw, from sources that have been read."""
    candidates = joined(one.candidates for one in scans)
    rows, short = draw(candidates, mix.counts, f"{mix.seed}/pool", "counts")
    pool = candidates.take(rows)
    stages: dict[str, Rows] = {}
    for name, counts in mix.stages.items():
        speaking = np.flatnonzero(~pool.rows["head_only"] | STAGES[name].takes_unanswered)
        drawn, lacking = draw(pool.take(speaking), counts, f"{mix.seed}/{name}", f"stages.{name}")
        stages[name] = speaking[drawn]
        short += lacking
    if short and mix.short == "error":
        raise MixError(f"{mix.file}: {'; '.join(short)}. Ask for fewer, add sources, or set `short: allow`")
    return MixPlan(mix, scans, absent, candidates.counts(), pool, stages, tuple(short))


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
    made, candidates = Scan(spec), CandidateColumns()
    problems, empty = _Problems(), EmptyCells()
    keeps = source_of(spec.kind, spec.name).keeps_labels
    for row in _counted(read_source(spec), made):
        made.rows += 1
        left_out = made.without_use
        found = _candidate(mix, row, made, problems, keeps)
        if found is None:
            made.dropped += made.without_use == left_out
        elif missing := row.missing or empty.among(row.images):
            made.without_image += 1
            made.missing += [f"{row.place}: {name}" for name in missing[: LISTED - len(made.missing)]]
        else:
            label, speaks = found
            candidates.add(label, row.id, not speaks)
            made.spool.add(row)
    problems.check_missing(made)
    problems.raise_any(f"{mix.file}: {spec.name}")
    made.candidates = candidates.made()
    return _limited(made, mix.seed)


def _counted(rows: SourceRows, made: Scan) -> Iterator[SourceRow]:
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


def _candidate(mix: Mix, row: SourceRow, made: Scan, problems: _Problems, keeps: bool) -> tuple[Label, bool] | None:
    """Its label, and whether it has an answer. None: dropped, left out, or a problem that was noted.

    `keeps`: as `safevlm.data.labels` has it.
    """
    spec = made.spec
    if row.split in HELD_OUT_SPLITS:
        problems.add(f"rows of split {row.split!r}, which no training mix may hold", row.id)
        return None
    try:
        label = _label(mix, row, made, problems, keeps)
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
    return label, speaks


def _label(mix: Mix, row: SourceRow, made: Scan, problems: _Problems, keeps: bool) -> Label | None:
    ruling = mix.labels.ruling(made.spec.name, row, keeps)
    if ruling.own == REFUSED:
        problems.add(f"rows whose own label the rule {ruling.rule!r} overrules (say so: `relabel: true`)", row.place)
    elif ruling.own:
        made.own_labels[ruling.own][ruling.rule] += 1
    return ruling.label


def _check_dialogue(row: SourceRow, spec: SourceSpec) -> None:
    """ValueError: turns that no record may have; answers that are not used do not matter."""
    if spec.answers == "table" or are_usual(row.turns) or not row.has_answer:
        return
    said = [RecordTurn(ROLES[speaker], text).said() for speaker, text in row.turns]
    fault = order_fault(said) or answer_fault(said)
    if fault:
        raise ValueError(f"{row.place}: {fault}")


def are_usual(turns: Sequence[Turn]) -> bool:
    """Whether questions and answers alternate and all say something, so that no fault need be looked for."""
    turn_of = "human"
    for speaker, text in turns:
        if speaker != turn_of or not (text[:1].isalnum() or IMAGE in text or has_words(text)):
            return False
        turn_of = "gpt" if speaker == "human" else "human"
    return bool(turns) and turn_of == "human"


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
        made.candidates = made.candidates.take(np.sort(rng.sample(range(count), limit)).astype("i8"))
        made.over_limit = count - limit
    return made


def taken_rows(made: MixPlan) -> Iterator[tuple[int, SourceRow]]:
    """(number in the pool, row) of every row of the pool, in order."""
    place = 0
    for number, one in enumerate(made.scans):
        wanted = made.pool.rows["index"][made.pool.rows["source"] == number]
        yield from enumerate(one.spool.rows(wanted), start=place)
        place += len(wanted)
