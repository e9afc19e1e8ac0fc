"""What a check found, and how it is printed: numbered lines, ✓ or ✗, the detail below. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

GOOD, BAD, SKIPPED = "✓", "✗", "–"
INDENT = " " * 6
LISTED = 8
"""Problems of one kind that are shown; all are counted."""


FAILURES = (ValueError, OSError, ImportError)
"""What work on a user's data may raise."""


@dataclass(frozen=True)
class Finding:
    """One line of a check. What is not ok makes the command fail."""

    ok: bool
    """False: something to mend before training starts."""
    title: str
    """One line; with ✗ it names the file, line or flag and the fix."""
    detail: str = ""
    """Further lines, shown indented below the title."""
    skipped: bool = False
    """Not looked at, because of another finding; never together with `ok`."""

    @property
    def mark(self) -> str:
        return GOOD if self.ok else SKIPPED if self.skipped else BAD


def outcome(work: Callable[[], Any]) -> Any:
    """The result of a check's work, or its error as a value."""
    try:
        return work()
    except FAILURES as error:
        return error


def finding_of(result: Any, told: Callable[[Any], str]) -> Finding:
    """✗ with an error's message, ✓ with what is told of a result."""
    return Finding(False, str(result)) if isinstance(result, Exception) else Finding(True, told(result))


def listed(problems: Sequence[str]) -> str:
    """The first problems as a finding's detail, and how many more there are."""
    more = [f"… and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return "\n".join([*problems[:LISTED], *more])


def size(amount: float) -> str:
    """Bytes in words: `1.3 GiB`, `12.0 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def numbered(number: int, finding: Finding) -> str:
    """`  1 ✓ title`, and the detail indented below it."""
    head = f"{number:>3} {finding.mark} {finding.title}"
    return "\n".join([head, *(f"{INDENT}{line}".rstrip() for line in finding.detail.splitlines())])


def summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.mark for finding in findings)
    shown = [f"{counts[mark]} {mark}" for mark in (GOOD, BAD, SKIPPED) if mark != SKIPPED or counts[mark]]
    return ", ".join(shown)


def show(findings: Iterable[Finding], out: Callable[[str], object] = print) -> list[Finding]:
    """Print each finding as it comes, then the summary; the findings themselves are returned."""
    seen: list[Finding] = []
    for finding in findings:
        seen.append(finding)
        out(numbered(len(seen), finding))
    out(summary(seen))
    return seen


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as one JSON object; the counts first."""
    rows = [{"number": number, **dataclasses.asdict(finding)} for number, finding in enumerate(findings, start=1)]
    counts = Counter(finding.mark for finding in findings)
    table = {"ok": counts[GOOD], "failed": counts[BAD], "skipped": counts[SKIPPED], "findings": rows}
    return json.dumps(table, ensure_ascii=False, indent=1)
