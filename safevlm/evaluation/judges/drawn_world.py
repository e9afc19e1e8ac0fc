"""The exact judge of a drawn world on a case. An empty answer goes to it too: it is unreadable, as in its table."""

from __future__ import annotations

from collections.abc import Callable

from safevlm.evaluation.judges.base import Assessment, Case
from safevlm.worlds.exact_judge import ExactJudge


def scorer(world: str, exact: Callable[[], ExactJudge]) -> Callable[[Case], Assessment]:
    """Label and value of a reply; `raw` is empty, since nothing but the reply was read."""

    def score(case: Case) -> Assessment:
        truth = case.truth
        missing = [name for name in ("level", "task", "things") if name not in truth]
        if missing:
            raise ValueError(
                f"{case.id}: truth lacks {missing}; the judge of the {world} needs the suite of the {world}"
            )
        judgement = exact().judge(case.answer, level=truth["level"], task=truth["task"], things=truth["things"])
        return Assessment(judgement.value, judgement.label)

    return score
