"""The checks of what a recipe names: values, DeepSpeed's JSON, data files, and the folder of the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safevlm.check import disk, zero
from safevlm.check.findings import Finding, size
from safevlm.check.lazy_parts import one_line
from safevlm.check.plan import RunPlan
from safevlm.config import PUBLISHED_BATCH
from safevlm.model.checkpoint_folder import FINAL
from safevlm.training import resume
from safevlm.training.arguments import training_arguments


def arguments(plan: RunPlan) -> Iterator[Finding]:
    problems = _refused(plan)
    yield from (Finding(False, problem) for problem in problems)
    if not problems:
        yield _batch(plan)


def _batch(plan: RunPlan) -> Finding:
    """What follows for these processes."""
    if plan.stage.fit:
        return Finding(True, f"{plan.recipe.stage}: {plan.stage.text}")
    optim, processes, steps = plan.recipe.optim, plan.cluster.processes, plan.accumulation
    notes = [] if plan.cluster.gpus else ["reckoned for this machine's GPUs, at least one process; else say --gpus N"]
    if optim.effective_batch is None and optim.accumulation is not None:
        notes.append(
            f"optim.accumulation: {steps} makes the batch grow with the processes; "
            f"optim.effective_batch keeps it (SafeVLM's is {PUBLISHED_BATCH})"
        )
    return Finding(
        True,
        f"{plan.recipe.stage}: effective batch {optim.batch_size * steps * processes} = {processes} processes x "
        f"{optim.batch_size} records x {steps} steps",
        "\n".join(notes),
    )


def deepspeed(plan: RunPlan) -> Iterator[Finding]:
    file = plan.recipe.run.deepspeed
    if plan.deepspeed_file is None:
        return
    _ = plan.stage.fit or plan.accumulation  # whether the batch can be split is another check's
    conflicts = list(zero.conflicts(plan.deepspeed_file, plan.recipe, plan.cluster.processes))
    yield from (Finding(False, f"{file}: {conflict}") for conflict in conflicts)
    if not conflicts:
        yield Finding(True, f"{file}: ZeRO-{zero.settings(plan.deepspeed_file).stage}, fits the recipe")


def data_files(plan: RunPlan) -> Iterator[Finding]:
    files, images = plan.recipe.data.train, plan.recipe.data.images
    missing = [file for file in files if not Path(file).is_file()]
    yield from (Finding(False, f"data.train: no such record file {file}") for file in missing)
    if images and not Path(images).is_dir():
        yield Finding(False, f"data.images: no such folder {images}")
    elif not missing:
        total = sum(Path(file).stat().st_size for file in files)
        yield Finding(True, f"data: {', '.join(files)}, {size(total)}")


def out(plan: RunPlan) -> Iterator[Finding]:
    folder = Path(plan.recipe.run.out)
    place = disk.standing(folder)
    if not place.is_dir():
        yield Finding(False, f"run.out: {place} is a file; choose a folder")
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Finding(False, f"run.out: cannot write to {place}; choose another folder")
    else:
        yield from _resume(plan, folder)


def _resume(plan: RunPlan, folder: Path) -> Iterator[Finding]:
    try:
        with _silent("safevlm.training.resume"), _silent("safevlm.training.same_run"):
            resume.check_places(plan.recipe)
            last = resume.newest(plan.recipe, plan.cluster.processes)
    except ValueError as error:
        yield Finding(False, one_line(error))
        return
    if last is None:
        note = "; run.resume is off" if not plan.recipe.run.resume else ""
        yield Finding(True, f"run.out: {folder} is writable; the run starts anew{note}")
    elif Path(last).name == FINAL:
        yield Finding(True, f"run.out: {last} is the result of this recipe already; there is nothing to train")
    else:
        yield Finding(True, f"run.out: the run goes on from {last}")


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """The same words from a check would read as if a run had started."""
    found = logging.getLogger(logger)
    before = found.disabled
    found.disabled = True
    try:
        yield
    finally:
        found.disabled = before


def _refused(plan: RunPlan) -> list[str]:
    """What transformers would refuse; device, DeepSpeed and loggers left out, which have checks of their own."""
    recipe = plan.recipe
    run = replace(recipe.run, device="cpu", deepspeed=None, bf16=False, report_to=[])
    steps = 1 if plan.stage.fit else plan.accumulation
    optim = replace(recipe.optim, effective_batch=None, accumulation=steps)  # of the run's processes, not of this one
    try:
        training_arguments(replace(recipe, run=run, optim=optim))
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        return [one_line(error)]
    return []
