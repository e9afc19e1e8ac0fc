"""From runs to a report: `report.html` (one file, no network), `table.md`, `table.tex`, `summary.json`. No model.

A run is one suite asked of one model behind one defense; NAME is its row, and the same NAME may come with several
suites. What may share a table is a matter of `safevlm.evaluation.report.section`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from safevlm.data.atomic_write import write_text
from safevlm.data.made_by import write_result
from safevlm.evaluation.judges.provenance import OUTCOMES, outcomes, told
from safevlm.evaluation.metrics.cells import UNITS, between, interval, number
from safevlm.evaluation.metrics.detector import Confusion, confusion, sets_of
from safevlm.evaluation.metrics.measures import MEASURES
from safevlm.evaluation.metrics.rates import Rate
from safevlm.evaluation.report.chart import MOST_SERIES, grouped_chart, interval_chart
from safevlm.evaluation.report.gallery import PER_GROUP, SampleCard, cards, per_page
from safevlm.evaluation.report.section import ReportColumn, ReportSection, remarks, sections_of, wordings
from safevlm.evaluation.report.summary import read_seconds, summarize
from safevlm.evaluation.report.table import latex, markdown
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.run import Run, read_run, run_inputs
from safevlm.evaluation.suites.groups import Side
from safevlm.evaluation.suites.headline import AVERAGE, PublishedTable
from safevlm.usage import UsageError

TEMPLATE = Path(__file__).with_name("report.html.j2")
TITLE = "SafeVLM: evaluation"
BAD, CAUTIOUS, GOOD = "#b5473c", "#3f6f9f", "#4a7d57"
COLOURS = {"asr": BAD, "harm": BAD, "over_refusal": CAUTIOUS}
"""By measure; the rest is GOOD."""
PAGE_COLUMNS = 7
Heads = list[tuple[ReportSection, list[ReportColumn]]]
SIDE_TITLES: Mapping[Side, str] = {
    "harmful": "harmful: helping is wrong",
    "benign": "benign: refusing is wrong",
    "scored": "scored: higher is better",
}


def report(
    runs: Mapping[str, Path] | Iterable[tuple[str, Path]],
    out: str | Path,
    *,
    head: str | None = None,
    seconds: str | Path | None = None,
    title: str = TITLE,
    per_group: int = PER_GROUP,
) -> dict[str, Any]:
    """Write the four files into `out` and return the summary. `head` names the run whose detector is looked at."""
    named = list(runs.items() if isinstance(runs, Mapping) else runs)
    if head is not None and head not in dict(named):
        raise UsageError(f"--head: no run is named {head!r}; one of {list(dict(named))}")
    read = _read(named)
    head_run = _head(read, head)
    found = sections_of(read)
    summary = summarize(read, found, head_run, read_seconds(Path(seconds)) if seconds else None)
    page = _page(read, found, head_run, summary, title, per_group)
    folder = Path(out)
    write_text(folder / "report.html", page)
    write_text(folder / "table.md", markdown(found))
    write_text(folder / "table.tex", latex(found))
    write_result(folder / "summary.json", summary, run_inputs(read))
    return summary


def _read(named: Sequence[tuple[str, Path]]) -> list[Run]:
    """ValueError: no run, or a row that would stand twice in one suite."""
    if not named:
        raise UsageError("--run: no run given; name at least one, as NAME=DIR")
    runs = [read_run(name, Path(folder)) for name, folder in named]
    seen: dict[tuple[str, str], Path] = {}
    for run in runs:
        row = (run.name, run.record["suite"])
        if row in seen:
            raise UsageError(
                f"--run: {run.name!r} is given twice for suite {row[1]!r} ({seen[row]}, {run.folder}); give each a name"
            )
        seen[row] = run.folder
    return runs


def _head(runs: Sequence[Run], name: str | None) -> Run | None:
    """The run whose detector is looked at; of several suites one whose truth is exact."""
    own = sorted((run for run in runs if run.name == name), key=lambda run: not run.suite.is_synthetic)
    return own[0] if own else None


def _page(
    runs: Sequence[Run],
    found: Sequence[ReportSection],
    head: Run | None,
    summary: Mapping[str, Any],
    title: str,
    per_group: int,
) -> str:
    gallery = cards(runs, per_group)
    return _template().render(
        title=title,
        written=run_file.now(),
        models=list(dict.fromkeys(_plain(run.record["model"]) for run in runs)),
        versions=list(dict.fromkeys(_listed(run.record.get("versions", {})) for run in runs)),
        summary=summary,
        runs=runs,
        names=list(dict.fromkeys(run.name for run in runs)),
        sections=[_told(index, section) for index, section in enumerate(found)],
        overview=_overview(found) if len(found) > 1 else [],
        measures=MEASURES,
        outcomes_of_judging=OUTCOMES,
        side_titles=SIDE_TITLES,
        head_titles=_head_titles(head),
        matrices=[_shaded(confusion(head, field)) for field in ("level", "category")] if head else [],
        cards=gallery,
        group_choices=list(dict.fromkeys((card.suite, card.group, card.title) for card in gallery)),
        category_choices=sorted({card.category for card in gallery}),
        outcome_choices=sorted({answer.outcome for card in gallery for answer in card.answers}),
        per_group=per_page(runs, per_group),
        has_folds=any(_is_folded(card) for card in gallery),
    )


def _told(index: int, section: ReportSection) -> dict[str, Any]:
    """What the template needs of a section."""
    return {
        "section": section,
        "anchor": f"section{index}",
        "group_titles": {name: group.title for name, group in section.groups.items()},
        "charts": _charts(section),
        "category_charts": _category_charts(section, index),
        "published": section.published,
        "published_rows": _published_rows(section),
        "published_chart": _published_chart(section, index),
        "judge": told(section.judge),
        "outcomes": {run.name: outcomes(run) for run in section.runs},
        "remarks": remarks(section),
        "wordings": wordings(section),
        "left_out": [run.name for run in section.runs[MOST_SERIES:]],
    }


def _overview(found: Sequence[ReportSection]) -> list[tuple[Heads, dict[str, list[dict[str, Any]]]]]:
    """Every run against every suite's columns, in tables as wide as a page; the time is left to the suites."""
    parts: list[Heads] = [[]]
    for section in found:
        columns = [one for one in section.columns if one.unit != "times"]
        if parts[-1] and sum(len(own) for _, own in parts[-1]) + len(columns) > PAGE_COLUMNS:
            parts.append([])
        parts[-1].append((section, columns))
    return [(heads, _overview_rows(heads)) for heads in parts]


def _overview_rows(heads: Heads) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(run.name for section, _ in heads for run in section.runs)
    return {
        name: [
            _overview_cell(section, name, one) | {"is_first": one is own[0]} for section, own in heads for one in own
        ]
        for name in names
    }


def _overview_cell(section: ReportSection, name: str, column: ReportColumn) -> dict[str, Any]:
    asked = name in section.table
    rate = section.table[name].get(column.name) if asked else None
    return {"rate": rate, "unit": column.unit, "absent": column.absent if asked else "not asked"}


def _charts(section: ReportSection) -> list[str]:
    if section.has_own_table:
        return [
            interval_chart(one.chart, _column(section, one.name), COLOURS.get(one.measure, GOOD))
            for one in section.suite.headlines
            if one.chart
        ]
    charts, names = [], [one.name for one in section.columns]
    for column in section.columns:
        if column.of is None or column.unit == "times" or f"{column.name}_of_groups" in names:
            continue
        factor, _, unit = UNITS[column.unit]
        colour = COLOURS.get(column.name.removesuffix("_of_groups"), GOOD)
        charts.append(interval_chart(column.title, _column(section, column.name), colour, factor, unit))
    return charts


def _category_charts(section: ReportSection, index: int) -> list[str]:
    """One per side and headline measure, where there is more than one category."""
    charts = []
    for side, table in section.cuts["category"].items():
        measure = next(iter(section.measures(side)), "")
        if not measure:  # a judge that counts nothing on this side
            continue
        rows = {name: {run: rates[measure] for run, rates in by_run.items()} for name, by_run in table.items()}
        if len(rows) > 1:
            factor, _, unit = UNITS[section.unit_of(measure)]
            title = f"By category, all {side} groups: {MEASURES[measure].title}"
            charts.append(grouped_chart(title, rows, factor=factor, unit=unit, key=f"c{index}{side}"))
    return charts


def _column(section: ReportSection, name: str) -> dict[str, Rate]:
    return {run: row[name] for run, row in section.table.items()}


def _published_rows(section: ReportSection) -> dict[str, list[Rate]]:
    """The measured rows of the published table, in its columns."""
    if section.published is None:
        return {}
    cut = section.cuts["group"].get("scored", {})
    return {
        run.name: [_measured(section, run, cut, column) for column in section.published.columns] for run in section.runs
    }


def _measured(section: ReportSection, run: Run, cut: Mapping[str, Any], column: str) -> Rate:
    if column == AVERAGE:
        return section.average(run, MEASURES["score"], "scored")
    return cut[column][run.name]["score"] if column in cut else Rate(None, 0, None, None)


def _published_chart(section: ReportSection, index: int) -> str:
    published = section.published
    if published is None:
        return ""
    titles = column_titles(section, published)
    measured = _published_rows(section)
    rows = {title: {name: rates[place] for name, rates in measured.items()} for place, title in enumerate(titles)}
    marks = {
        name: {title: value / 10 for title, value in zip(titles, published.rows[name], strict=True)}
        for name in published.charted
    }
    return grouped_chart(
        "Score by group, 0-10 (higher is better)", rows, marks, factor=10, unit="", key=f"p{index}", mark=published.mark
    )


def column_titles(section: ReportSection, published: PublishedTable) -> list[str]:
    return [AVERAGE if name == AVERAGE else section.suite.groups[name].title for name in published.columns]


def _head_titles(head: Run | None) -> dict[str, str]:
    return {name: one.title for name, one in sets_of(head.suite).items()} if head else {}


def _is_folded(card: SampleCard) -> bool:
    return card.is_folded or any(answer.is_folded for answer in card.answers)


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _plain(place: str) -> str:
    """A model's folder or address; without the scheme, so that no reader takes it for a link."""
    return place.partition("://")[2] or place


def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install -e '.[eval]'") from error

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["number"] = lambda value, unit: number(unit, value)
    page.filters["interval"] = lambda value, unit: interval(unit, value)
    page.filters["between"] = lambda bounds, unit: between(unit, bounds)
    page.filters["moment"] = lambda stamp: datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M UTC")
    page.filters["as_rate"] = lambda table: Rate(**table)
    page.filters["place"] = _plain
    page.globals["column_titles"] = column_titles
    return page.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _shaded(matrix: Confusion) -> dict[str, Any]:
    """Rows of the matrix with each cell's share of its row, for the shading."""
    rows = []
    for true in matrix.names:
        counts = [matrix.counts[true, seen] for seen in matrix.names]
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        rows.append({"name": true, "total": total, "cells": list(zip(matrix.names, counts, shares, strict=True))})
    return {"of": matrix.of, "names": matrix.names, "rows": rows}
