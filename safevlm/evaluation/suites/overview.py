"""What `safevlm eval suites` tells: every suite, its source and licence, rows published and rows found, or absent.

Only tables are read; no image leaves its archive for this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safevlm.evaluation.suites import SUITES, AbsentError, folder_of, suite_of
from safevlm.evaluation.suites.counts import SuiteCount, counts
from safevlm.evaluation.suites.question import UNUSABLE
from safevlm.evaluation.suites.suite import TOTAL, Suite

HEAD = ("suite", "published", "found", "lack an image", "judge", "licence", "source")


@dataclass(frozen=True)
class SuiteStanding:
    """How a suite stands in a folder."""

    suite: Suite
    counts: tuple[SuiteCount, ...] = ()
    unusable: tuple[str, ...] = ()
    """Why rows cannot be used, each with its place."""
    lacking: int = 0
    """Rows whose image is not in the download."""
    absent: str = ""
    """Why the suite is not there; `not there` when not even its folder is."""
    error: str = ""
    """Why it cannot be read."""

    @property
    def found(self) -> int:
        return sum(count.found for count in self.counts if count.part != TOTAL)

    @property
    def is_short(self) -> bool:
        return bool(
            self.error
            or self.lacking
            or self.unusable
            or (self.suite.is_sure and any(count.is_short for count in self.counts))
        )


def standings(data: Path | None, names: Sequence[str] | None = None) -> list[SuiteStanding]:
    """Every suite, or those named; without a folder nothing is looked for."""
    if data is not None and not data.is_dir():
        raise NotADirectoryError(f"--data {data}: no such folder")
    suites = [suite_of(name) for name in names] if names else list(SUITES.working().values())
    return [standing(suite, data) for suite in suites]


def standing(suite: Suite, data: Path | None) -> SuiteStanding:
    if data is None:
        return SuiteStanding(suite, absent="not looked for")
    folder = folder_of(suite, data)
    try:
        rows = list(suite.questions(folder))
    except AbsentError as error:
        return SuiteStanding(suite, absent="not there" if folder == data else str(error))
    except (ValueError, OSError, ImportError) as error:
        return SuiteStanding(suite, error=str(error))
    unusable = tuple(str(row.expected[UNUSABLE]) for row in rows if UNUSABLE in row.expected)
    return SuiteStanding(suite, tuple(counts(suite, rows)), unusable, sum(bool(row.missing) for row in rows))


def lines(standings_: Iterable[SuiteStanding]) -> list[str]:
    """The table, and under it what a reader has to do or to know."""
    listed = list(standings_)
    rows = [HEAD, *(_cells(one) for one in listed)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [*table, "", *(line for one in listed for line in _remarks(one))]


def tsv(standings_: Iterable[SuiteStanding], judge: str = "") -> list[str]:
    """For shell scripts: `SUITE JUDGE model|rules there|absent|error WHY`, tabs between; WHY is `-` where all is well.

    `judge` stands in for the suites' own ones.
    """
    from safevlm.evaluation.judges import judge_of  # late: judges know suites, suites know no judge

    found = []
    for one in standings_:
        state = "absent" if one.absent else "error" if one.error else "there"
        name = judge or one.suite.judge
        needs = "model" if judge_of(name).needs_model else "rules"
        why = " ".join((one.absent or one.error).split()) or "-"
        found.append("\t".join([one.suite.name, name, needs, state, why]))
    return found


def _cells(one: SuiteStanding) -> tuple[str, ...]:
    state = "absent" if one.absent else "error" if one.error else f"{one.found:,}"
    return (
        one.suite.name,
        published(one.suite),
        state,
        str(one.lacking or "") if one.counts else "",
        one.suite.judge,
        one.suite.licence,
        one.suite.source,
    )


def published(suite: Suite) -> str:
    """Rows as published; `~` where sources differ."""
    if not suite.published:
        return "?"
    total = suite.published.get(TOTAL) or sum(suite.published.values())
    return f"{'' if suite.is_sure else '~'}{total:,}"


def _remarks(one: SuiteStanding) -> list[str]:
    name = one.suite.name
    if one.error:
        return [f"{name}: cannot be read: {' '.join(one.error.split())}"]
    if one.absent:
        return [f"{name}: {one.absent}; looks for {one.suite.layout}; get it: {one.suite.download}"]
    wrong = [str(count) for count in one.counts if count.published not in (None, count.found)]
    lacking = [f"{one.lacking} rows lack their image"] if one.lacking else []
    lacking += [f"{len(one.unusable)} rows cannot be used, the first: {one.unusable[0]}"] if one.unusable else []
    return [f"{name}: {'; '.join(lacking + wrong)}"] * bool(lacking + wrong) + [f"{name}: {one.suite.note}"]
