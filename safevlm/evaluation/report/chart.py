"""Bars with their intervals, as inline SVG. No library; names are escaped here.

Bars are told apart by pattern as well as by colour, so that print and colour-blind readers lose nothing. What others
have published is drawn as a hollow mark in its own lane under the bars, never as a bar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from safevlm.evaluation.metrics.rates import Rate

WIDTH = 460  # all sizes are in the drawing's own units; the page scales it
ROW = 30
BAR = 16
HEAD = 26
FOOT = 24
LEFT = 150
RIGHT = 62
LONGEST_NAME = 22  # letters that fit beside the bars

WIDE, THIN, GAP = 940, 11, 12  # of a chart with several bars per row
WIDE_LEFT, WIDE_RIGHT = 190, 70
SERIES = (
    ("#2f5f8a", ""),
    ("#d9a441", "M0 6L6 0"),
    ("#6f9a76", "M0 0L6 6"),
    ("#8d6a9f", "M0 3H6"),
    ("#c97b63", "M3 0V6"),
    ("#7d8791", "M0 3H6M3 0V6"),
)
"""Colours that differ in lightness too, and the stroke of a 6 × 6 tile over each."""
MOST_SERIES = len(SERIES)
MARKS = ("M0-5L5 0L0 5L-5 0Z", "M-4-4H4V4H-4Z", "M0-5L5 4H-5Z", "M-4-4L4 4M4-4L-4 4")
"""Hollow shapes for published numbers: diamond, square, triangle, cross."""


def interval_chart(title: str, rates: Mapping[str, Rate], colour: str, factor: float = 100, unit: str = " %") -> str:
    """SVG of shares (0-100 %, or 0-10) by row; a row without a value says so."""
    height = HEAD + ROW * len(rates) + FOOT
    bottom = HEAD + ROW * len(rates)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f'<text x="0" y="14" class="chart-title">{escape(title)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _x(share)
        parts.append(f'<line x1="{x}" y1="{HEAD}" x2="{x}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" class="tick">{factor * share:g}{unit}</text>')
    for index, (name, rate) in enumerate(rates.items()):
        parts.extend(_bar(name, rate, HEAD + ROW * index + ROW / 2, colour, factor, unit))
    return "\n".join([*parts, "</svg>"])


def grouped_chart(
    title: str,
    rows: Mapping[str, Mapping[str, Rate]],
    published: Mapping[str, Mapping[str, float]] | None = None,
    *,
    factor: float = 100,
    unit: str = " %",
    key: str = "g",
    mark: str = "",
) -> str:
    """SVG of one bar per series in every row. `published` holds shares by name and row; `key` tells patterns apart.

    At most MOST_SERIES series are drawn: the caller says which ones are left out.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))[:MOST_SERIES]
    known = published or {}
    lanes = len(names) + bool(known)
    tall = THIN * lanes + GAP
    head = HEAD + 18 * (len(names) + (len(known) + bool(known)))
    bottom = head + tall * len(rows)
    parts = [
        f'<svg viewBox="0 0 {WIDE} {bottom + FOOT}" role="img" aria-label="{escape(title)}">',
        _patterns(key, len(names)),
        f'<text x="0" y="14" class="chart-title">{escape(title)}</text>',
        *_legend(names, list(known), key, mark),
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _wide(share)
        parts.append(f'<line x1="{x}" y1="{head}" x2="{x}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" class="tick">{factor * share:g}{unit}</text>')
    for index, (row, rates) in enumerate(rows.items()):
        top = head + tall * index + GAP / 2
        parts.append(_name(row, WIDE_LEFT, top + THIN * lanes / 2, 30))
        for lane, name in enumerate(names):
            parts.extend(_thin(rates.get(name), top + THIN * lane, f"url(#{key}{lane})", factor))
        parts.extend(_marks(known, row, top + THIN * (len(names) + 0.5)))
    return "\n".join([*parts, "</svg>"])


def _patterns(key: str, count: int) -> str:
    tiles = "".join(
        f'<pattern id="{key}{index}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect width="6" height="6" fill="{colour}"/>'
        + (f'<path d="{stroke}" stroke="#fff" stroke-width="1.3"/>' if stroke else "")
        + "</pattern>"
        for index, (colour, stroke) in enumerate(SERIES[:count])
    )
    return f"<defs>{tiles}</defs>"


def _legend(names: Sequence[str], published: Sequence[str], key: str, mark: str) -> list[str]:
    parts, y = [], 32
    for index, name in enumerate(names):
        parts.append(f'<rect x="0" y="{y - 9}" width="22" height="10" fill="url(#{key}{index})"/>')
        parts.append(f'<text x="30" y="{y}">{escape(name)}</text>')
        y += 18
    if published:
        parts.append(f'<text x="0" y="{y}" class="none">{escape(mark)}:</text>')
        y += 18
    for index, name in enumerate(published):
        parts.append(f'<path d="{MARKS[index % len(MARKS)]}" transform="translate(11 {y - 4})" class="mark"/>')
        parts.append(f'<text x="30" y="{y}" class="none">{escape(name)}</text>')
        y += 18
    return parts


def _thin(rate: Rate | None, y: float, fill: str, factor: float) -> list[str]:
    if rate is None or rate.value is None or rate.low is None or rate.high is None:
        return [f'<text x="{WIDE_LEFT + 6}" y="{y + 9}" class="none small">no data</text>']
    value, low, high, middle = _wide(rate.value), _wide(rate.low), _wide(rate.high), y + THIN / 2
    digits, width = (2 if factor == 10 else 1), round(value - WIDE_LEFT, 1)
    return [
        f'<rect x="{WIDE_LEFT}" y="{y + 0.5}" width="{width}" height="{THIN - 1}" fill="{fill}"/>',
        f'<path d="M{low} {middle}H{high}M{low} {middle - 3}v6M{high} {middle - 3}v6" class="whisker"/>',
        f'<text x="{round(max(value, high) + 6, 1)}" y="{y + 9}" class="small">{factor * rate.value:.{digits}f}</text>',
    ]


def _marks(published: Mapping[str, Mapping[str, float]], row: str, y: float) -> list[str]:
    return [
        f'<path d="{MARKS[index % len(MARKS)]}" transform="translate({_wide(values[row])} {y})" class="mark">'
        f"<title>{escape(name)}</title></path>"
        for index, (name, values) in enumerate(published.items())
        if row in values
    ]


def _bar(name: str, rate: Rate, y: float, colour: str, factor: float, unit: str) -> list[str]:
    label = _name(name, LEFT, y, LONGEST_NAME)
    if rate.value is None or rate.low is None or rate.high is None:
        return [label, f'<text x="{LEFT + 6}" y="{y + 4}" class="none">no data</text>']
    zero, value, low, high = _x(0), _x(rate.value), _x(rate.low), _x(rate.high)
    told = f"{factor * rate.value:.1f}{unit}" if factor == 100 else f"{factor * rate.value:.2f}"
    return [
        label,
        f'<rect x="{zero}" y="{y - BAR / 2}" width="{round(value - zero, 1)}" height="{BAR}" fill="{colour}"/>',
        f'<path d="M{low} {y}H{high}M{low} {y - 4}v8M{high} {y - 4}v8" class="whisker"/>',
        f'<text x="{round(max(value, high) + 6, 1)}" y="{y + 4}" class="value">{told}</text>',
    ]


def _name(name: str, left: float, y: float, longest: int) -> str:
    short = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return f'<text x="{left - 8}" y="{y + 4}" class="name"><title>{escape(name)}</title>{escape(short)}</text>'


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _wide(share: float) -> float:
    return round(WIDE_LEFT + share * (WIDE - WIDE_LEFT - WIDE_RIGHT), 1)
