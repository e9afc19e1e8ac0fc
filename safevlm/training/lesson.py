"""Whether a run has something to learn: a term of its loss, with labels for it, that reaches what the stage trains.

The trap: a loss without a single label is 0 and a step without a gradient goes well, so such a run ends with "done"
and leaves a head of random numbers, whose verdicts look like any other's.
"""

from __future__ import annotations

from collections.abc import Sequence

from safevlm.config import Recipe, SafetyConfig
from safevlm.data.record_facts import NONE, Facts, facts_of
from safevlm.data.records import Record, RecordError
from safevlm.training.stage import Stage


def check_lesson(stage: Stage, recipe: Recipe, safety: SafetyConfig, records: Sequence[Record]) -> None:
    """ValueError: the head, or everything, would stay as it is. `safety`: of the model that trains.

    RecordError: the records have no label that the head could learn.
    """
    loss, has_head = recipe.loss, safety.projector != "none"
    if not stage.trains_head or not (has_head or safety.lm_tokens):  # of no module at all `prepare` speaks
        return
    if has_head and (loss.level or loss.category):
        # corrected data are unlabelled: they teach the LM tokens what to answer, and the head is not their matter
        if not recipe.data.relabel and not _teach_head(facts_of(records), recipe):
            raise RecordError(
                f"{', '.join(recipe.data.train)}: no record with an image has a label ({_labels(recipe)}), so the head "
                "learns nothing; label the images, or set loss.level and loss.category to 0"
            )
    elif stage.fit is None and not (loss.lm and safety.lm_tokens):
        raise ValueError(
            "loss: no term reaches what trains: level and category teach the safety head, lm teaches LM tokens "
            f"(model.safety.lm_tokens, here {safety.lm_tokens}); give one of them a weight"
        )


def _teach_head(facts: Facts, recipe: Recipe) -> bool:
    """Whether a record with an image has a label that counts."""
    seen = facts[facts["images"] > 0]
    labels = ((recipe.loss.level, seen["safe_level"]), (recipe.loss.category, seen["safe_type"]))
    return any(weight and (ids != NONE).any() for weight, ids in labels)


def _labels(recipe: Recipe) -> str:
    weights = {"safe_level": recipe.loss.level, "safe_type": recipe.loss.category}
    return " or ".join(key for key, weight in weights.items() if weight)
