"""`table.md` and `table.tex`: the same cells twice, each with value, 95 % interval, n and what is unscored."""

from __future__ import annotations

from collections.abc import Sequence

from safevlm.evaluation.judges.provenance import OUTCOMES, outcomes, told
from safevlm.evaluation.metrics.measures import Unit
from safevlm.evaluation.metrics.rates import Rate
from safevlm.evaluation.report.section import ReportColumn, ReportSection, remarks
from safevlm.evaluation.runs.run import Run

LEGEND = "95 % intervals (Wilson; time: bootstrap of the median). ↓ lower is better."
LONG_LEGEND = (
    "95 % intervals: Wilson (shares), bootstrap (scores, time), both combined (means of groups). ↓ lower is better. "
    "What no judge could score is counted as unscored and stays out of n."
)
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
UNITS: dict[Unit, tuple[float, str, str]] = {
    "share": (100, ".1f", " %"),
    "ten": (10, ".2f", ""),
    "times": (1, ".2f", " ×"),
}
"""Factor, format, and what follows the number."""


def markdown(found: Sequence[ReportSection]) -> str:
    """The tables for a README; a suite's own table stands alone, all others have a heading and their judge."""
    if len(found) == 1 and found[0].has_own_table:
        return _lines(found[0]) + f"\n\n{LEGEND}\n{_unfinished(found[0].runs)}"
    parts = [f"### {heading(section)}\n\n{_lines(section)}\n\n{_notes(section)}" for section in found]
    return "\n".join([*parts, LONG_LEGEND]) + "\n"


def latex(found: Sequence[ReportSection]) -> str:
    """A `table` per suite and judge, for `\\input`; needs no package."""
    return "\n".join(_latex_of(section) for section in found)


def heading(section: ReportSection) -> str:
    return f"{section.suite.name} · judge {section.judge.name}"


def cell(unit: Unit, value: Rate) -> str:
    """One cell in words: `3.4 % [2.1, 5.5] n 600`."""
    if value.value is None:
        return f"– ({value.unscored} unscored)" if value.unscored else "–"
    unscored = f", {value.unscored} unscored" if value.unscored else ""
    return f"{number(unit, value.value)} {interval(unit, value)} n {value.n}{unscored}"


def number(unit: Unit, value: float) -> str:
    """`1.04 ×` for the time, `3.4 %` for shares, `8.26` for scores of ten."""
    factor, form, tail = UNITS[unit]
    return f"{factor * value:{form}}{tail}"


def interval(unit: Unit, value: Rate) -> str:
    """`[2.1, 5.5]`; empty when there is none."""
    if value.low is None or value.high is None:
        return ""
    factor, form, _ = UNITS[unit]
    return f"[{factor * value.low:{form}}, {factor * value.high:{form}}]"


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _rows(section: ReportSection) -> list[list[str]]:
    return [[run.name, *(_cell(section, run, column) for column in section.columns)] for run in section.runs]


def _cell(section: ReportSection, run: Run, column: ReportColumn) -> str:
    return column.absent if column.of is None else cell(column.unit, section.table[run.name][column.name])


def _lines(section: ReportSection) -> str:
    titles = [column.title for column in section.columns]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for name, *cells in _rows(section):
        lines.append("| " + " | ".join([name.replace("|", "\\|"), *cells]) + " |")
    return "\n".join(lines)


def _notes(section: ReportSection) -> str:
    unscored = [f"{run.name}: {found}" for run in section.runs if (found := unscored_in_words(run))]
    notes = [
        f"Judge: {told(section.judge)}.",
        f"Unscored: {'; '.join(unscored) or 'none'}.",
        section.suite.note,
        *(f"Beware: {one}." for one in remarks(section)),
    ]
    return "".join(f"{note}\n" for note in notes if note)


def unscored_in_words(run: Run) -> str:
    """`3 unparsed, 1 failed`; empty when every reply has a score."""
    counts = outcomes(run)
    ordered = [*OUTCOMES[1:], *(name for name in counts if name not in OUTCOMES)]
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in ordered if counts[name])


def _unfinished(runs: Sequence[Run]) -> str:
    unfinished = [run.name for run in runs if not run.is_finished]
    return f"\nUnfinished: {', '.join(unfinished)}.\n" if unfinished else ""


def _latex_of(section: ReportSection) -> str:
    titles = [column.title for column in section.columns]
    lines = [["", *titles], *_rows(section)]
    rows = [" & ".join(escaped(one) for one in line) + r" \\" for line in lines]
    caption = escaped(f"{heading(section)}. {LONG_LEGEND} Judge: {told(section.judge)}.")
    return "\n".join(
        [
            r"\begin{table}",
            r"\footnotesize",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'l' * len(titles)}}}",
            r"\hline",
            rows[0],
            r"\hline",
            *rows[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
