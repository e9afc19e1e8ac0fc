"""How far two judges agree about the same replies: per group, the share and Cohen's kappa, and who did not score.

A judge is believed as far as it agrees with one that is known to be right; on the miniature that one is exact. What is
compared is yes or no: a value above one half. Both judges' scores stand beside it, since judges that differ on which
replies are bad may still agree on how many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safevlm.data.made_by import write_result
from safevlm.evaluation.judges import record
from safevlm.evaluation.metrics.rates import HARMFUL_FROM, mean, rate
from safevlm.evaluation.runs.files import SCORES, Score, read_scores
from safevlm.usage import UsageError

ALL = "all"
FACTS = ("model", "served_as", "fingerprint", "measures", "outcomes", "calls")
"""What `judge.json` says that the table repeats."""

Pair = tuple[Score, Score]


def agreement(
    a: str | Path,
    b: str | Path,
    out: str | Path | None = None,
    more: Sequence[tuple[str | Path, str | Path]] = (),
    command: str = "",
) -> dict[str, Any]:
    """Compares two folders with scores of the same replies; ValueError when the ids differ.

    `more`: the two judgings of further runs. All are pooled in `groups`, and each stands in `runs` by A's folder.
    """
    folders = [(Path(one), Path(two)) for one, two in [(a, b), *more]]
    runs = {str(one): _pairs(one, two) for one, two in folders}
    if len(runs) < len(folders):
        raise UsageError(f"--more: a folder of A is given twice: {[str(one) for one, _ in folders]}")
    pooled = [pair for pairs in runs.values() for pair in pairs]
    table = {
        "schema": 1,
        "command": command,
        "yes_above": HARMFUL_FROM,
        "judges": [_names(pooled, side) for side in (0, 1)],
        "groups": _groups(pooled),
        "disagree": _disagree(folders, runs),
        "runs": {
            str(one): {"a": _facts(one), "b": {"folder": str(two), **_facts(two)}, "groups": _groups(runs[str(one)])}
            for one, two in folders
        },
    }
    if out is not None:
        write_result(Path(out), table, {"scores": [side / SCORES for pair in folders for side in pair]})
    return table


def told(table: Mapping[str, Any]) -> str:
    """For the terminal."""
    lines = [f"A {', '.join(table['judges'][0])}; B {', '.join(table['judges'][1])}"]
    if len(table["runs"]) > 1:
        lines += [_line(name, run["groups"][ALL]) for name, run in table["runs"].items()]
    return "\n".join([*lines, *(_line(name, row) for name, row in table["groups"].items())])


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa; None where chance alone would agree always, as when both always say the same."""
    if not pairs:
        return None
    n = len(pairs)
    seen = sum(one == two for one, two in pairs) / n
    ones, twos = Counter(one for one, _ in pairs), Counter(two for _, two in pairs)
    chance = sum(ones[side] * twos[side] for side in (True, False)) / (n * n)
    return None if chance == 1 else (seen - chance) / (1 - chance)


def _line(name: str, row: Mapping[str, Any]) -> str:
    share, beyond = row["agreement"], row["kappa"]
    text = "nothing that both scored"
    if share["value"] is not None:
        text = f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}] n {share['n']}"
    beyond = "-" if beyond is None else f"{beyond:.3f}"
    return f"{name}: {text}, kappa {beyond}; only A {row['only_a']}, only B {row['only_b']}"


def _groups(pairs: Sequence[Pair]) -> dict[str, Any]:
    names = [ALL, *dict.fromkeys(one.group for one, _ in pairs)]
    return {name: _row([pair for pair in pairs if name in (ALL, pair[0].group)]) for name in names}


def _row(pairs: Sequence[Pair]) -> dict[str, Any]:
    claims = [_claims(*pair) for pair in pairs]
    both = [(one, two) for one, two in claims if one is not None and two is not None]
    return {
        "agreement": asdict(rate(one == two for one, two in both)),
        "kappa": kappa(both),
        "only_a": sum(one is not None and two is None for one, two in claims),
        "only_b": sum(one is None and two is not None for one, two in claims),
        "neither": sum(one is None and two is None for one, two in claims),
        "yes": {
            "both": both.count((True, True)),
            "only_a": both.count((True, False)),
            "only_b": both.count((False, True)),
            "neither": both.count((False, False)),
        },
        "mean_a": asdict(mean(one.value for one, _ in pairs)),
        "mean_b": asdict(mean(two.value for _, two in pairs)),
        "differing_labels": dict(
            Counter(f"{one.label} / {two.label}" for one, two in pairs if _differ(one, two)).most_common()
        ),
    }


def _differ(one: Score, two: Score) -> bool:
    claims = _claims(one, two)
    return None not in claims and claims[0] != claims[1]


def _claims(one: Score, two: Score) -> tuple[bool | None, bool | None]:
    return _claim(one), _claim(two)


def _claim(score: Score) -> bool | None:
    return None if score.value is None else score.value > HARMFUL_FROM


def _disagree(folders: Sequence[tuple[Path, Path]], runs: Mapping[str, Sequence[Pair]]) -> Any:
    """Ids on which yes and no differ; of several runs, by run."""
    ids = {name: [one.id for one, two in pairs if _differ(one, two)] for name, pairs in runs.items()}
    return ids if len(folders) > 1 else ids[str(folders[0][0])]


def _pairs(a: Path, b: Path) -> list[Pair]:
    left, right = _by_id(a), _by_id(b)
    if left.keys() != right.keys():
        differing = sorted(left.keys() ^ right.keys())
        raise ValueError(f"{a}, {b}: scores of different replies: {differing[:3]} ({len(differing)} in all)")
    return [(left[name], right[name]) for name in left]


def _by_id(folder: Path) -> dict[str, Score]:
    return {score.id: score for score in read_scores(folder)}


def _names(pairs: Sequence[Pair], side: int) -> list[str]:
    return sorted({pair[side].judge for pair in pairs})


def _facts(folder: Path) -> dict[str, Any]:
    known = record.read(folder)
    return {name: known[name] for name in FACTS if name in known}
