"""How far two judges agree about the same replies: per group, the share and Cohen's kappa, and who did not score.

A judge is believed as far as it agrees with one that is known to be right; on the miniature that one is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.files import Score, read_scores, write_json
from eval.metrics import HARMFUL_FROM, rate

ALL = "all"


def agreement(a: str | Path, b: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Compares two folders with scores of the same replies; ValueError when the ids differ."""
    left, right = _by_id(Path(a)), _by_id(Path(b))
    if left.keys() != right.keys():
        differing = sorted(left.keys() ^ right.keys())
        raise ValueError(f"{a}, {b}: scores of different replies: {differing[:3]} ({len(differing)} in all)")
    pairs = [(left[name], right[name]) for name in left]
    groups = [ALL, *dict.fromkeys(one.group for one, _ in pairs)]
    table = {
        "judges": [_names(left), _names(right)],
        "groups": {name: _row([pair for pair in pairs if name in (ALL, pair[0].group)]) for name in groups},
        "disagree": [one.id for one, two in pairs if None not in _claims(one, two) and len({*_claims(one, two)}) > 1],
    }
    if out is not None:
        write_json(Path(out), table)
    return table


def told(table: Mapping[str, Any]) -> str:
    """For the terminal."""
    lines = [f"A {', '.join(table['judges'][0])}; B {', '.join(table['judges'][1])}"]
    for name, row in table["groups"].items():
        share, kappa = row["agreement"], row["kappa"]
        text = "nothing that both scored"
        if share["value"] is not None:
            text = f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}] n {share['n']}"
        kappa = "-" if kappa is None else f"{kappa:.3f}"
        lines.append(f"{name}: {text}, kappa {kappa}; only A {row['only_a']}, only B {row['only_b']}")
    return "\n".join(lines)


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa; None where chance alone would agree always, as when both always say the same."""
    if not pairs:
        return None
    n = len(pairs)
    seen = sum(one == two for one, two in pairs) / n
    ones, twos = Counter(one for one, _ in pairs), Counter(two for _, two in pairs)
    chance = sum(ones[side] * twos[side] for side in (True, False)) / (n * n)
    return None if chance == 1 else (seen - chance) / (1 - chance)


def _row(pairs: Sequence[tuple[Score, Score]]) -> dict[str, Any]:
    claims = [_claims(*pair) for pair in pairs]
    both = [(one, two) for one, two in claims if one is not None and two is not None]
    return {
        "agreement": asdict(rate(one == two for one, two in both)),
        "kappa": kappa(both),
        "only_a": sum(one is not None and two is None for one, two in claims),
        "only_b": sum(one is None and two is not None for one, two in claims),
        "neither": sum(one is None and two is None for one, two in claims),
    }


def _claims(one: Score, two: Score) -> tuple[bool | None, bool | None]:
    return _claim(one), _claim(two)


def _claim(score: Score) -> bool | None:
    return None if score.value is None else score.value > HARMFUL_FROM


def _by_id(folder: Path) -> dict[str, Score]:
    return {score.id: score for score in read_scores(folder)}


def _names(scores: Mapping[str, Score]) -> list[str]:
    return sorted({score.judge for score in scores.values()})
