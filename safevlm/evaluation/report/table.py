"""`table.md` and `table.tex`: the same cells and the same warnings twice.

Each cell has its value, 95 % interval and n; where something is unscored, how much, and the value at worst.
"""

from __future__ import annotations

from collections.abc import Sequence

from safevlm.evaluation.judges.provenance import OUTCOMES, outcomes, told
from safevlm.evaluation.metrics.cells import cell
from safevlm.evaluation.metrics.measures import MEASURES
from safevlm.evaluation.report.section import ReportColumn, ReportSection, remarks
from safevlm.evaluation.runs.run import Run
from safevlm.evaluation.suites.groups import Side

LEGEND = "95 % intervals (Wilson; time: bootstrap of the median). ↓ lower is better."
LONG_LEGEND = (
    "95 % intervals: Wilson (shares), bootstrap (scores, time), both combined (means of groups). ↓ lower is better. "
    "What no judge could score is counted as unscored and stays out of n."
)
BOUNDS = "Behind `unscored`: the value at worst, with all of it counted as 0, and as 1."
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "×": r"$\times$",
    "–": "--",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "…": r"\ldots{}",
}
"""For packages' sake no more than plain LaTeX."""


def markdown(found: Sequence[ReportSection]) -> str:
    """The tables for a README; a suite's own table stands alone, all others have a heading and their judge."""
    if len(found) == 1 and found[0].has_own_table:
        section = found[0]
        legend = " ".join(filter(None, (LEGEND, _bounds_legend(section))))
        return "\n\n".join([_lines(_rows(section)), legend, *_warnings(section)]) + "\n"
    parts = [f"### {heading(section)}\n\n{_tables(section)}\n\n{_notes(section)}" for section in found]
    legend = " ".join([LONG_LEGEND, *({_bounds_legend(section) for section in found} - {""})])
    return "\n".join([*parts, legend]) + "\n"


def latex(found: Sequence[ReportSection]) -> str:
    """A `table` per suite and judge, for `\\input`; needs no package."""
    return "\n".join(_latex_of(section) for section in found)


def heading(section: ReportSection) -> str:
    return f"{section.suite.name} · judge {section.judge.name}"


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _rows(section: ReportSection) -> list[list[str]]:
    """The head, then a line per run."""
    head = ["", *(column.title for column in section.columns)]
    return [head, *([run.name, *(_cell(section, run, column) for column in section.columns)] for run in section.runs)]


def _group_rows(section: ReportSection, side: Side, measure: str) -> list[list[str]]:
    """The head, then a line per group, with a column per run."""
    groups, unit = section.cuts["group"][side], section.unit_of(measure)
    head = [MEASURES[measure].title, *(run.name for run in section.runs)]
    return [
        head,
        *(
            [section.suite.groups[name].title, *(cell(unit, rates[run.name][measure]) for run in section.runs)]
            for name, rates in groups.items()
        ),
    ]


def _by_group(section: ReportSection) -> list[list[list[str]]]:
    """Tables of the groups that the suite's authors report one by one."""
    if not section.suite.averages_groups:
        return []
    return [
        _group_rows(section, side, measure)
        for side, groups in section.cuts["group"].items()
        if len(groups) > 1
        for measure in section.measures(side)
    ]


def _cell(section: ReportSection, run: Run, column: ReportColumn) -> str:
    return column.absent if column.of is None else cell(column.unit, section.table[run.name][column.name])


def _tables(section: ReportSection) -> str:
    return "\n\n".join(map(_lines, [_rows(section), *_by_group(section)]))


def _lines(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(_escaped(head)) + " |", "|---|" + "---|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(_escaped(line)) + " |" for line in body)]).replace("|  |", "| |")


def _escaped(cells: Sequence[str]) -> list[str]:
    return [one.replace("|", "\\|") for one in cells]


def _notes(section: ReportSection) -> str:
    return "".join(f"{note}\n" for note in notes(section))


def notes(section: ReportSection) -> list[str]:
    """What stands under a table, in Markdown as in LaTeX."""
    unscored = [f"{run.name}: {found}" for run in section.runs if (found := unscored_in_words(run))]
    return [
        f"Judge: {told(section.judge)}.",
        f"Unscored: {'; '.join(unscored) or 'none'}.",
        *([section.suite.note] if section.suite.note else []),
        *_warnings(section),
    ]


def _warnings(section: ReportSection) -> list[str]:
    return [f"Beware: {one}." for one in remarks(section)]


def _bounds_legend(section: ReportSection) -> str:
    return BOUNDS if any(rate.unscored for row in section.table.values() for rate in row.values()) else ""


def unscored_in_words(run: Run) -> str:
    """`3 unparsed, 1 failed`; empty when every reply has a score."""
    counts = outcomes(run)
    ordered = [*OUTCOMES[1:], *(name for name in counts if name not in OUTCOMES)]
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in ordered if counts[name])


def _latex_of(section: ReportSection) -> str:
    legend = " ".join(filter(None, (heading(section) + ".", LONG_LEGEND, _bounds_legend(section))))
    return "\n".join(
        [
            r"\begin{table}",
            r"\footnotesize",
            rf"\caption{{{escaped(legend)}}}",
            *(line for rows in (_rows(section), *_by_group(section)) for line in _tabular(rows)),
            *(escaped(note) + r"\par" for note in notes(section)),
            r"\end{table}",
            "",
        ]
    )


def _tabular(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = (" & ".join(map(escaped, line)) + r" \\" for line in rows)
    return [
        rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}",
        r"\hline",
        head,
        r"\hline",
        *body,
        r"\hline",
        r"\end{tabular}\par\medskip",
    ]
