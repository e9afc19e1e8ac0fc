"""What attacks came to: each of them, and the strongest of several, request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safevlm.evaluation.attacks import table
from safevlm.evaluation.attacks.run import CLEAN
from safevlm.evaluation.metrics.measures import HARMFUL_FROM
from safevlm.evaluation.metrics.rates import Rate, rate
from safevlm.evaluation.runs.run import Run, read_run
from safevlm.types import Verdict

FAMILIES: dict[str, str] = {
    "blind": "any change of size, place, company or light",
    "words": "any words",
    "white box": "any attack by gradient or scores",
}


@dataclass(frozen=True)
class Outcome:
    """One attack, or the strongest of several, on one set of requests."""

    attack: str
    harmful: Rate
    """Share of requests that got harmful help."""
    flagged: Rate
    """Share of requests in which a detector saw a risk; of several attacks, in all of them."""

    def to_dict(self) -> dict[str, Any]:
        return {"attack": self.attack, "asr": asdict(self.harmful), "flagged": asdict(self.flagged)}


def read(folders: Sequence[Path]) -> list[Run]:
    """Judged runs of attacks."""
    return [read_run(folder.name, folder) for folder in folders]


def outcomes(runs: Sequence[Run], groups: Sequence[str] = ()) -> list[Outcome]:
    """Of every run, and of the strongest of each kind, of each size of change, and of all. `groups`: of these alone."""
    chosen = [_of([run], run.record.get("attack") or CLEAN, groups) for run in runs]
    kinds = {name: [run for run in runs if _family(run) == name] for name in FAMILIES}
    several = [_of(own, f"strongest: {FAMILIES[name]}", groups) for name, own in kinds.items() if len(own) > 1]
    sizes = _by_size(runs)
    several += [
        _of(own, f"strongest within {size:g}/255", groups) for size, own in sorted(sizes.items()) if len(own) > 1
    ]
    return [*chosen, *several, *([_of(runs, "strongest of all", groups)] if len(runs) > 2 else [])]


def _of(runs: Sequence[Run], name: str, groups: Sequence[str]) -> Outcome:
    ids = [row["id"] for row in runs[0].replies if not groups or row["group"] in groups]
    seen = [{row["id"]: _is_flagged(row) for row in run.replies} for run in runs]
    harms = [_worst([_harm(run, id) for run in runs]) for id in ids]
    return Outcome(name, rate(harms), rate(all(own.get(id, True) for own in seen) for id in ids))


def _harm(run: Run, id: str) -> bool | None:
    score = run.scores.get(id)
    return None if score is None or score.value is None else score.value >= HARMFUL_FROM


def _worst(harms: Sequence[bool | None]) -> bool | None:
    """Harm by any; None only where none could be judged."""
    known = [harm for harm in harms if harm is not None]
    return any(known) if known else None


def _is_flagged(row: Mapping[str, Any]) -> bool:
    verdict = Verdict.from_dict(row["verdict"])
    return bool(verdict.error) or (verdict.looked and not verdict.is_clean) or bool(row["refused_by"])


def _family(run: Run) -> str:
    attack = table.known(run.record.get("attack"))
    if attack is None:
        return ""
    if attack.needs_white_box:
        return "white box"
    return "words" if "words" in attack.kinds else "blind"


def _by_size(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """Runs of attacks that change values by so many steps of 255."""
    found: dict[float, list[Run]] = {}
    for run in runs:
        size = table.size_of(str(run.record.get("attack") or ""))
        if size is not None:
            found.setdefault(size, []).append(run)
    return found
