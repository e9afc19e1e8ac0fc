"""Whether the run in a folder is the one that a recipe asks for. If not, its records would tell of what never happened.

What does not change what is learned may differ (`FREE`), and a run may be made longer. Files are compared by content,
settings by value. A checkpoint of an earlier version has no digests: its paths are compared, and a warning says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from transformers.trainer import TRAINER_STATE_NAME

from safevlm.config import Recipe
from safevlm.training import inputs
from safevlm.training.inputs import Inputs
from safevlm.training.provenance import RECIPE, RUN, recipe_yaml

log = logging.getLogger(__name__)

FREE = (
    "run.out",
    "run.device",
    "run.log_steps",
    "run.report_to",
    "run.save_steps",
    "run.keep",
    "run.resume",
    "data.workers",
    "data.verify_images",
    "data.feature_cache",
    "data.feature_cache_gb",
    "model.base",
    "optim.gradient_checkpointing",
)
"""Keys that a run may change when it goes on: where it lies, what it logs and keeps, how it is held in memory."""
DURATION = ("optim.epochs", "optim.max_steps")
ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A key whose value is not that of the run that is there."""

    key: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.key} {self.before} -> {self.now}"


@dataclass(frozen=True)
class StartedRun:
    """What a checkpoint says of its run."""

    folder: Path
    recipe: Mapping[str, Any]
    """Dotted keys → values."""
    inputs: Inputs
    processes: int | None
    step: int
    """Updates done."""
    epoch: float
    """Epochs done."""
    planned_steps: int
    """Updates that the run was to have; 0: not known."""
    max_steps: int
    """`optim.max_steps` of its recipe, and below `optim.epochs`."""
    epochs: float


def read(folder: Path) -> StartedRun:
    """The record in a checkpoint's folder. ValueError: a file of it is missing or broken, with its path and the fix."""
    recipe, run, state = flat(_yaml(folder / RECIPE)), _json(folder / RUN), {}
    if (folder / TRAINER_STATE_NAME).is_file():
        state = _json(folder / TRAINER_STATE_NAME)
    try:
        return StartedRun(
            folder,
            recipe,
            inputs.from_record(run.get("inputs", {})),
            None if run.get("processes") is None else int(run["processes"]),
            int(state.get("global_step", 0)),
            float(state.get("epoch") or 0),
            int(state.get("max_steps", 0)),
            int(recipe.get("optim.max_steps", -1)),
            float(recipe.get("optim.epochs", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        files = f"{RECIPE}, {RUN} or {TRAINER_STATE_NAME}"
        raise broken(folder / files, f"a value that no run writes ({error})") from error


def differences(record: StartedRun, recipe: Recipe, found: Inputs) -> list[Difference]:
    """What the recipe asks for and the run is not; `found` is what the recipe names, by content."""
    now = flat(yaml.safe_load(recipe_yaml(recipe)))
    defaults = flat(_defaults(Recipe))
    free = {*FREE, *DURATION, *inputs.KEYS}
    keys = [key for key in {**now, **record.recipe} if not any(f"{key}.".startswith(f"{one}.") for one in free)]
    differing = []
    for key in keys:
        before, wanted = (table.get(key, defaults.get(key)) for table in (record.recipe, now))
        if before != wanted and not _is_same_place(key, before, wanted):
            differing.append(Difference(key, _told(before), _told(wanted)))
    return [*differing, *_of_inputs(record, now, found), *_shorter(record, recipe)]


def warn_of_unknown(record: StartedRun, found: Inputs) -> None:
    """One line that says what an earlier version did not note, so that nobody can compare it."""
    missing = [key for key in inputs.unknown(record.inputs) if found.get(key)]
    if missing:
        log.warning(
            "%s: of an earlier version, which did not note the content of %s; only the paths were compared",
            record.folder,
            ", ".join(missing),
        )


def broken(file: Path, what: str) -> ValueError:
    """The error of a checkpoint's file that is missing or broken."""
    return ValueError(
        f"{file}: {what}; without it nobody can tell what run this is. Put the file back, remove the folder "
        f"{file.parent} (the run then goes on from the checkpoint before it), or start anew with --run.resume false"
    )


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    made: dict[str, Any] = {}
    for key, value in table.items():
        made |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return made


def _defaults(kind: Any) -> dict[str, Any]:
    """What a key means in a recipe that was written before there was one."""
    kinds, made = get_type_hints(kind), {}
    for one in fields(kind):
        value = one.default_factory() if one.default_factory is not MISSING else one.default
        made[one.name] = _defaults(kinds[one.name]) if is_dataclass(kinds[one.name]) else value
    return made


def _of_inputs(record: StartedRun, now: Mapping[str, Any], found: Inputs) -> Iterator[Difference]:
    for key, mine in found.items():
        theirs = record.inputs.get(key)
        before, wanted = _paths(record.recipe.get(key)), _paths(now.get(key))
        if theirs is None:
            if not _are_same_paths(before, wanted):
                yield Difference(key, _told(record.recipe.get(key)), _told(now.get(key)))
        elif [one.digest for one in theirs] != [one.digest for one in mine]:
            if _are_same_paths(before, wanted):
                changed = [new.path for old, new in zip(theirs, mine, strict=True) if old.digest != new.digest]
                yield Difference(key, ", ".join(changed), "other content under the same name")
            else:
                yield Difference(key, _told(record.recipe.get(key)), f"{_told(now.get(key))} (other content)")


def _shorter(record: StartedRun, recipe: Recipe) -> Iterator[Difference]:
    """A run that is to end before it was meant to: its schedule was another."""
    optim = recipe.optim
    if optim.max_steps > 0:
        is_shorter = optim.max_steps < (record.max_steps if record.max_steps > 0 else record.planned_steps)
    else:
        is_shorter = optim.epochs < (record.epoch if record.max_steps > 0 else record.epochs)
    if is_shorter:
        key = "optim.max_steps" if max(record.max_steps, optim.max_steps) > 0 else "optim.epochs"
        before, now = _duration(record.max_steps, record.epochs), _duration(optim.max_steps, optim.epochs)
        yield Difference(key, before, f"{now} (shorter)")


def _duration(steps: int, epochs: float) -> str:
    return f"{steps} steps" if steps > 0 else f"{epochs:g} epochs"


def is_longer(record: StartedRun, recipe: Recipe) -> bool:
    """Whether the recipe asks for more than the run did; `differences` has found no shorter one."""
    return (recipe.optim.max_steps, float(recipe.optim.epochs)) != (record.max_steps, record.epochs)


def _is_same_place(key: str, before: Any, now: Any) -> bool:
    return key == "data.images" and _are_same_paths(_paths(before), _paths(now))


def _are_same_paths(before: list[str], now: list[str]) -> bool:
    return before == now or [Path(one).resolve() for one in before] == [Path(one).resolve() for one in now]


def _paths(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)] if value else []


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else f"{text[:100]}…"


def _yaml(file: Path) -> dict[str, Any]:
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise broken(file, "missing") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise broken(file, "not YAML") from error
    return _table(file, table)


def _json(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise broken(file, "missing") from error
    except (ValueError, RecursionError) as error:
        raise broken(file, "not JSON") from error
    return _table(file, table)


def _table(file: Path, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise broken(file, "not a table of keys and values")
    return table
