"""A bar per row with its interval, as inline SVG. No library; names are escaped here."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from eval.metrics import Rate

WIDTH = 460  # all sizes are in the drawing's own units; the page scales it
ROW = 30
BAR = 16
HEAD = 26
FOOT = 24
LEFT = 150
RIGHT = 62
LONGEST_NAME = 22  # letters that fit beside the bars


def interval_chart(title: str, rates: Mapping[str, Rate], colour: str) -> str:
    """SVG of shares (0-100 %) by row; a row without a value says so."""
    height = HEAD + ROW * len(rates) + FOOT
    bottom = HEAD + ROW * len(rates)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f'<text x="0" y="14" class="chart-title">{escape(title)}</text>',
    ]
    for percent in (0, 25, 50, 75, 100):
        x = _x(percent / 100)
        parts.append(f'<line x1="{x}" y1="{HEAD}" x2="{x}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" class="tick">{percent} %</text>')
    for index, (name, rate) in enumerate(rates.items()):
        parts.extend(_bar(name, rate, HEAD + ROW * index + ROW / 2, colour))
    return "\n".join([*parts, "</svg>"])


def _bar(name: str, rate: Rate, y: float, colour: str) -> list[str]:
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    label = f'<text x="{LEFT - 8}" y="{y + 4}" class="name"><title>{escape(name)}</title>{escape(short)}</text>'
    if rate.value is None or rate.low is None or rate.high is None:
        return [label, f'<text x="{LEFT + 6}" y="{y + 4}" class="none">no data</text>']
    zero, value, low, high = _x(0), _x(rate.value), _x(rate.low), _x(rate.high)
    return [
        label,
        f'<rect x="{zero}" y="{y - BAR / 2}" width="{round(value - zero, 1)}" height="{BAR}" fill="{colour}"/>',
        f'<path d="M{low} {y}H{high}M{low} {y - 4}v8M{high} {y - 4}v8" class="whisker"/>',
        f'<text x="{round(max(value, high) + 6, 1)}" y="{y + 4}" class="value">{100 * rate.value:.1f} %</text>',
    ]


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)
