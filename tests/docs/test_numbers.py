"""Numbers in the pages are those of the result files.

A table behind `<!-- numbers: FILE : PATH : COLUMN … -->` is compared cell by cell. PATH leads to a measure in the
JSON file, with the row's first cell for {row} and the column's name for {column}; `first` on the way is the first of
several seeds. Numbers in sentences stand in `SENTENCES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, name, page

MARK = re.compile(r"<!-- numbers: (\S+) : (.+?) : (.+?) -->\s*\n((?:\|.*\n?)+)")


@cache
def _results(file: str) -> Any:
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def _at(file: str, path: str) -> Any:
    found = _results(file)
    for key in path.split("/"):
        found = next(iter(found.values())) if key == "first" else found[key]
    return found


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def times(value: float) -> str:
    return f"{value:.2f}"


def fraction(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


UNITS: Mapping[str, tuple[Callable[[float], str], str]] = {
    "%": (percent, " %"),
    "×": (times, " ×"),
    ".": (fraction, ""),
}
"""What a cell shows → how its numbers are written, and what stands behind them."""


def _expected(measure: Mapping[str, Any], shown: str) -> str:
    """The cell as the measure (or one per seed) would have it, with the interval if the cell shows one."""
    seeds = [measure] if "value" in measure else list(measure.values())
    if all(seed["value"] is None for seed in seeds):
        return "–"
    write, unit = next(UNITS[sign] for sign in UNITS if sign in shown)
    text = " / ".join(write(seed["value"]) for seed in seeds) + unit
    if "[" in shown:
        text += f" [{write(seeds[0]['low'])}, {write(seeds[0]['high'])}]"
    return text


def _short(value: Any) -> str:
    return str(value)[:30] if isinstance(value, str) and "\n" not in value else "-"


def _tables() -> list[tuple[str, str, str, list[str], str]]:
    return [
        (name(path), file, where, columns.split(), table)
        for path in PAGES
        for file, where, columns, table in MARK.findall(page(path).text)
    ]


@pytest.mark.parametrize(("source", "file", "where", "columns", "table"), _tables(), ids=_short)
def test_tables_hold_the_numbers_of_their_result_file(
    source: str, file: str, where: str, columns: list[str], table: str
):
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert rows, f"{source}: the table of {file} is empty"
    for row, *cells in rows:
        for column, shown in zip(columns, cells, strict=False):
            path = where.replace("{row}", row.strip("`")).replace("{column}", column)
            expected = _expected(_at(file, path), shown)
            assert shown == expected, f"{source}: row {row}, column {column}: shows {shown}, {file} has {expected}"


def test_pages_have_tables_of_numbers():
    assert len(_tables()) >= 6, "the marks of tables are no longer found"


AUDIT = "eval/results/analysis/audit.json"
SPEED = "eval/results/analysis/audit_speed.json"
MINIATURE = "eval/results/miniature/summary.json"
LAYERS = "eval/results/analysis/layers_stage1.json"
MERGED = "eval/results/analysis/layers_merged.json"
RULES = "eval/results/refusal_rules.json"
AGREEMENT = "eval/results/agreement.json"
THROUGHPUT = "eval/results/throughput.json"
RELABEL = "eval/results/safe_clip_relabel.json"
ALL_GROUPS = "eval/results/analysis/tsne_all.json"
STAGE1 = "eval/results/analysis/calibration_stage1.json"

SENTENCES: list[tuple[str, str, str, str, Callable[[float], str]]] = [
    ("results.md", "category {} %", MINIATURE, "head/category_accuracy", percent),
    ("results.md", "level {} %", MINIATURE, "head/level_accuracy", percent),
    ("results.md", "right in {} %", MINIATURE, "head/sets/all/level_from_category/value", percent),
    ("results.md", "(n 300): category {} %", MINIATURE, "head/sets/unseen/category/value", percent),
    ("results.md", "{} s in all", MINIATURE, "seconds/total", "{:.0f}".format),
    ("results.md", "{} × [0.98", MINIATURE, "suites/miniature/stage1+safety-head/latency_ratio/value", times),
    ("results.md", "all {} are found", AUDIT, "risky", "{:.0f}".format),
    ("results.md", "precision {} [", AUDIT, "precision/value", fraction),
    ("results.md", "Reported {},", AUDIT, "flagged", "{:.0f}".format),
    ("results.md", "estimated {} [", AUDIT, "estimate/risky/value", "{:.0f}".format),
    ("results.md", "right for {} % of them", AUDIT, "category_right_of_found/value", percent),
    ("results.md", "{} on pixels that are ready", SPEED, "judge_over_tower", lambda v: f"{int(100 * v) / 100:.2f}"[1:]),
    ("results.md", "stand {}° [", LAYERS, "inputs/text/safety_gap/value", "{:.1f}".format),
    ("results.md", "only in the image it is {}° [", LAYERS, "inputs/image/safety_gap/value", "{:.1f}".format),
    ("results.md", "A fixed prompt gives {}°", LAYERS, "inputs/static-prompt/safety_gap/value", "{:.1f}".format),
    ("results.md", "with our head {}° [", LAYERS, "inputs/safety-head/safety_gap/value", "{:.1f}".format),
    ("results.md", "true labels {}°", LAYERS, "inputs/oracle/safety_gap/value", "{:.1f}".format),
    ("results.md", "Stage 2 opens {}° [", MERGED, "inputs/image/safety_gap/value", "{:.1f}".format),
    ("results.md", "against {}° in words", MERGED, "inputs/text/safety_gap/value", "{:.1f}".format),
    ("results.md", "precision {} % [", RULES, "columns/rules/held_out/precision/value", percent),
    ("results.md", "recall {} % [", RULES, "columns/rules/held_out/recall/value", percent),
    ("results.md", "exact judge on {} % [", AGREEMENT, "groups/all/agreement/value", percent),
    ("results.md", "(kappa {};", AGREEMENT, "groups/all/kappa", lambda v: f"{v:.2f}"[1:]),
    ("results.md", "batches were {} [", THROUGHPUT, "ways/batches of 64/times_faster/value", "{:.1f}".format),
    ("results.md", "it at {} % [", RELABEL, "suites/miniature/relabelled/asr/value", percent),
    (
        "results.md",
        "purity is {} [",
        ALL_GROUPS,
        "separation/category, risky/spaces/safety/purity/value",
        fraction,
    ),
    ("results.md", "| {} of 100 kept it", STAGE1, "trials/rules/on average/kept", "{:.0f}".format),
]
"""Page, words around the number, result file, path, how it is written."""


@pytest.mark.parametrize(("source", "words", "file", "path", "write"), SENTENCES, ids=_short)
def test_sentences_hold_the_numbers_of_their_result_file(
    source: str, words: str, file: str, path: str, write: Callable[[float], str]
):
    text = " ".join((ROOT / "docs" / source).read_text(encoding="utf-8").split())
    expected = words.replace("{}", write(_at(file, path)))
    assert expected in text, f"docs/{source} should say {expected!r}; {file} has {_at(file, path)} at {path}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_result_files_that_a_page_names_exist(path: Path):
    for file in set(re.findall(r"eval/results/[\w./-]+\.(?:json|md|png)", page(path).text)):
        assert (ROOT / file).exists(), f"{name(path)} names {file}"


def test_every_result_file_is_listed_with_its_command():
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8").split("## Where each file comes from")[1]
    listed = {file for row in text.splitlines() for file in re.findall(r"`([\w./]+)`", row.split(" | ")[0])}
    listed = {file for file in listed if "." in file}
    results = ROOT / "eval/results"
    there = {file.relative_to(results).as_posix() for file in results.rglob("*") if file.is_file()}
    assert listed == there, f"not listed: {sorted(there - listed)}; not there: {sorted(listed - there)}"
