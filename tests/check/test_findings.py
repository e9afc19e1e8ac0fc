"""Findings as lines and as JSON, and the table of checks: one failure hides no other."""

from __future__ import annotations

import json
from collections.abc import Iterator

from safevlm.check import findings
from safevlm.check.findings import Finding
from safevlm.check.lazy_parts import lazy_part, run

MIXED = [Finding(True, "fine", "one\ntwo"), Finding(False, "bad"), Finding(False, "left out", skipped=True)]


def test_lines_are_numbered_marked_and_summed_up() -> None:
    lines: list[str] = []
    findings.show(iter(MIXED), lines.append)
    assert lines == ["  1 ✓ fine\n      one\n      two", "  2 ✗ bad", "  3 – left out", "1 ✓, 1 ✗, 1 –"]


def test_summary_names_no_skipped_ones_when_there_are_none() -> None:
    assert findings.summary(MIXED[:2]) == "1 ✓, 1 ✗"


def test_json_has_counts_and_every_finding() -> None:
    table = json.loads(findings.as_json(MIXED))
    assert (table["ok"], table["failed"], table["skipped"]) == (1, 1, 1)
    assert table["findings"][0] == {"number": 1, "ok": True, "title": "fine", "detail": "one\ntwo", "skipped": False}


def test_long_lists_are_cut_and_counted() -> None:
    assert findings.listed([str(index) for index in range(20)]).splitlines()[-1] == "… and 12 more"


def test_sizes_have_their_unit() -> None:
    assert [findings.size(amount) for amount in (12, 3 << 10, 5 << 20, 7 << 30)] == [
        "12 B",
        "3.0 KiB",
        "5.0 MiB",
        "7.0 GiB",
    ]


class Thing:
    made = 0

    @lazy_part
    def good(self) -> int:
        self.made += 1
        return 7

    @lazy_part
    def broken(self) -> int:
        raise ValueError("no such thing")

    @lazy_part
    def on_top(self) -> int:
        return self.broken + 1


def _good(thing: Thing) -> Iterator[Finding]:
    yield Finding(thing.good == 7, "good")


def _broken(thing: Thing) -> Iterator[Finding]:
    yield Finding(thing.broken == 7, "never")


def _on_top(thing: Thing) -> Iterator[Finding]:
    yield Finding(thing.on_top == 8, "never")


def test_a_part_is_made_once() -> None:
    thing = Thing()
    assert thing.good + thing.good == 14 and thing.made == 1


def test_a_broken_part_is_one_finding_and_later_checks_are_skipped() -> None:
    checks = (("first", _broken), ("second", _broken), ("third", _on_top), ("fourth", _on_top), ("last", _good))
    found = list(run(checks, Thing()))
    assert [one.mark for one in found] == ["✗", "–", "–", "–", "✓"], [one.title for one in found]
    assert found[0].title == "first: no such thing"
