"""Which checkpoint a run goes on from, and whether it can; and where an earlier run goes when one starts anew."""

from __future__ import annotations

import contextlib
import itertools
import logging
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from safevlm.config import Recipe
from safevlm.data import atomic_write
from safevlm.model import checkpoint_folder
from safevlm.model.checkpoint_folder import FINAL, CheckpointError
from safevlm.training import inputs, same_run
from safevlm.training.inputs import Inputs
from safevlm.training.same_run import Difference, StartedRun

log = logging.getLogger(__name__)

BEST = "best"
CHECKPOINT = "checkpoint-"
DEEPSPEED = "latest"
"""File by which DeepSpeed finds its part of a checkpoint."""
EARLIER = "earlier"
"""Begins the name of the folder, inside of `run.out`, that an earlier run is moved to."""


def newest(recipe: Recipe, processes: int, found: Inputs | None = None) -> str | None:
    """The newest checkpoint in `run.out`, or a result without any; None: start anew. `found`: `inputs.read(recipe)`.

    ValueError: it is of another run, or broken, or this number of processes cannot read it (DeepSpeed cuts the
    optimiser's state by it); the message says what differs and what can be done.
    """
    place = _newest(Path(recipe.run.out)) if recipe.run.resume else None
    if place is None:
        return None
    record, found = same_run.read(place), inputs.read(recipe) if found is None else found
    differing = same_run.differences(record, recipe, found)
    if differing:
        raise ValueError(_refusal(place, differing))
    if place.name == FINAL:
        _check_done(record, recipe)
    else:
        _check_whole(record, bool(recipe.run.deepspeed))
        _check_processes(record, recipe, processes)
    same_run.warn_of_unknown(record, found)
    log.info("resuming from %s", place)
    return str(place)


def is_done(last: str, recipe: Recipe) -> bool:
    """Whether a checkpoint is the end of a run by `max_steps`; the Trainer would add an update to it."""
    return 0 < recipe.optim.max_steps <= int(last.rsplit("-", 1)[1])


def check_places(recipe: Recipe) -> None:
    """ValueError: the run would write into the checkpoint that it starts from, or that one lies among its own files."""
    out, model = Path(recipe.run.out).resolve(), Path(recipe.model.path)
    starts = [model.resolve()]
    with contextlib.suppress(CheckpointError):  # loading says it better
        starts.append(checkpoint_folder.resolve(model).resolve())
    for start in starts:
        if out == start or out.is_relative_to(start):
            where = "is" if out == start else "lies inside"
            raise ValueError(f"run.out: {recipe.run.out} {where} model.path, {model}; give the run a folder of its own")
        if start.is_relative_to(out) and _is_of_a_run(start.relative_to(out).parts[0]):
            raise ValueError(
                f"run.out: {recipe.run.out} holds model.path, {model}, as its own; give the run a folder of its own"
            )


def set_aside(out: Path) -> Path | None:
    """Moves what a run left in `out` to a folder of its own in there; None: there is nothing."""
    left = [path for path in sorted(out.iterdir()) if _is_of_a_run(path.name)] if out.is_dir() else []
    if not left:
        return None
    place = _aside(out)
    atomic_write.move_into(place, left)
    log.info("%s: the run that was here is now in %s", out, place)
    return place


def _newest(out: Path) -> Path | None:
    """The newest checkpoint, else the result."""
    last = get_last_checkpoint(str(out)) if out.is_dir() else None
    if last is not None:
        return Path(last)
    return out / FINAL if (out / FINAL).is_dir() else None


def _is_of_a_run(name: str) -> bool:
    return name in (FINAL, BEST) or name.startswith(CHECKPOINT)


def _aside(out: Path) -> Path:
    return next(place for n in itertools.count(1) if not (place := out / f"{EARLIER}-{n}").exists())


def _refusal(place: Path, differing: list[Difference]) -> str:
    out = place.parent
    anew = f"or start anew with --run.resume false, which moves that run to {_aside(out)}"
    stages = [one for one in differing if one.key == "stage"]
    if stages:
        return (
            f"{out}: holds a run of stage {stages[0].before} ({place.name}), and this one is of stage {stages[0].now}; "
            f"give it a folder of its own by --run.out, {anew}"
        )
    told = "; ".join(map(str, differing))
    return f"{out}: holds another run ({place.name}): {told}. Set it back, choose another --run.out, {anew}"


def _check_done(record: StartedRun, recipe: Recipe) -> None:
    """ValueError: a result without a checkpoint is to be trained further."""
    if same_run.is_longer(record, recipe):
        raise ValueError(
            f"{record.folder}: is there without a checkpoint, so that the run cannot be made longer; choose another "
            f"--run.out, or start anew with --run.resume false, which moves it to {_aside(record.folder.parent)}"
        )


def _check_whole(record: StartedRun, deepspeed: bool) -> None:
    """ValueError: a checkpoint that lost a file; transformers would go on with a fresh optimiser without a word."""
    folder = record.folder
    needed = (DEEPSPEED,) if deepspeed else (OPTIMIZER_NAME, SCHEDULER_NAME)
    for name in (TRAINER_STATE_NAME, *needed):
        if not (folder / name).is_file():
            raise same_run.broken(folder / name, "missing")
    file = folder / TRAINER_STATE_NAME
    try:
        state = TrainerState.load_from_json(str(file))
        is_sound = all(isinstance(line, dict) for line in state.log_history)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise same_run.broken(file, f"not the state of a training ({error})") from error
    if not is_sound or folder.name != f"{CHECKPOINT}{record.step}":
        raise same_run.broken(file, f"not the state after {folder.name.removeprefix(CHECKPOINT)} updates")


def _check_processes(record: StartedRun, recipe: Recipe, processes: int) -> None:
    before, last = record.processes, record.folder
    if recipe.run.deepspeed and before is not None and before != processes:
        raise ValueError(
            f"{last}: saved by {before} processes under DeepSpeed, which cut the optimiser's state into as many parts; "
            f"this run has {processes}. Launch {before} processes, or start anew from its weights: "
            f"--model.path {last} --run.out ANOTHER_FOLDER (a LoRA must be merged first)"
        )
    if before is not None and before != processes:
        log.warning("%s is of %d processes, this run has %d: its steps are of another size", last, before, processes)
