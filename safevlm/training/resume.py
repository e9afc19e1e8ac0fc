"""Which checkpoint a run goes on from, and whether it can."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from safevlm.config import Recipe
from safevlm.training.provenance import RUN

log = logging.getLogger(__name__)


def newest(recipe: Recipe, processes: int) -> str | None:
    """The newest checkpoint in `run.out`; None: start anew.

    ValueError when it cannot be read by this number of processes: DeepSpeed cuts the optimiser's state by it.
    """
    out = Path(recipe.run.out)
    last = get_last_checkpoint(str(out)) if recipe.run.resume and out.is_dir() else None
    if last is None:
        return None
    before = _processes(Path(last))
    if recipe.run.deepspeed and before is not None and before != processes:
        raise ValueError(
            f"{last}: saved by {before} processes under DeepSpeed, which cut the optimiser's state into as many parts; "
            f"this run has {processes}. Launch {before} processes, or start anew from its weights: "
            f"--model.path {last} --run.out ANOTHER_FOLDER (a LoRA must be merged first)"
        )
    if before is not None and before != processes:
        log.warning("%s is of %d processes, this run has %d: its steps are of another size", last, before, processes)
    log.info("resuming from %s", last)
    return last


def is_done(last: str, recipe: Recipe) -> bool:
    """Whether a checkpoint is the end of a run by `max_steps`; the Trainer would add an update to it."""
    return 0 < recipe.optim.max_steps <= int(last.rsplit("-", 1)[1])


def _processes(checkpoint: Path) -> int | None:
    file = checkpoint / RUN
    return json.loads(file.read_text(encoding="utf-8")).get("processes") if file.is_file() else None
