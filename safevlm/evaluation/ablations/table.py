"""A table of ablations: rows as overrides of recipes, and the plan that `eval/ablations/safevlm.sh` runs.

training:
  stage1: {recipe: …, data: train.jsonl, set: {optim.epochs: 1}}
sections:
  a heading:
    neither: {}                                   # the model as it is
    head: {train: stage1, set: {data.clean: 300}, defense: safety-head}
    head+lora: {train: stage2, model: head}       # starts from what the row `head` gave
    mixer_off: {model: head}                      # what the row `head` gave, behind no defense
  another heading:
    clean_300: {same: head}                       # tells the row `head` again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from safevlm.files import read_yaml
from safevlm.paths import expanded_path

NOTHING = "-"
"""An empty field of a plan's line; bash would drop it."""


@dataclass(frozen=True)
class Training:
    recipe: str
    data: str
    """File of records, in the folder of the data."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the recipe for all rows."""


@dataclass(frozen=True)
class AblationRow:
    train: str = ""
    """How it is trained, by name; none: not at all."""
    model: str = ""
    """Row whose result it starts from; none: the model of the command line."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the recipe for this row."""
    defense: str = "none"
    """Behind which it is asked."""
    same: str = ""
    """Row that this one repeats."""


@dataclass(frozen=True)
class AblationTable:
    training: Mapping[str, Training]
    rows: Mapping[str, AblationRow]
    """All rows by name, in order."""
    sections: Mapping[str, Sequence[str]]
    """Names of rows by heading."""


@dataclass(frozen=True)
class AblationStep:
    """One row with one seed: train if there is a recipe, then ask `model`."""

    row: str
    seed: int
    defense: str
    out: Path
    base: str
    """What training starts from."""
    model: str
    """What is asked: the run, or where nothing is trained the base."""
    recipe: str = ""
    records: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.row}@{self.seed}"

    @property
    def flags(self) -> list[str]:
        return [word for key, value in self.overrides.items() for word in (f"--{key}", _word(value))]

    @property
    def command(self) -> str:
        """What trains it in one process; empty: nothing."""
        if not self.recipe:
            return ""
        places = f"--model.path {self.base} --data.train [{self.records}] --run.out {self.model}"
        return " ".join(["safevlm train", self.recipe, places, *self.flags])

    def run(self, suite: str) -> Path:
        """Where `eval/evaluate.sh` puts the replies."""
        return self.out / suite / self.defense


def read_table(file: Path) -> AblationTable:
    """ValueError names the file and the row: an unknown key or training, a name twice, a row not above."""
    told = read_yaml(file, AblationFile)
    rows: dict[str, AblationRow] = {}
    for lines in told.sections.values():
        for name, row in lines.items():
            _check_row(name, row, told.training, rows, f"{file}: {name}")
            rows[name] = row
    return AblationTable(told.training, rows, {section: list(lines) for section, lines in told.sections.items()})


@dataclass(frozen=True)
class AblationFile:
    """The shape of such a YAML file."""

    training: Mapping[str, Training]
    sections: Mapping[str, Mapping[str, AblationRow]]


def plan(table: AblationTable, model: str, data: str, out: str, seeds: Sequence[int]) -> list[AblationStep]:
    """Seed by seed, in the order of the table. What was never trained is the same for all seeds: asked once."""
    return [
        _step(table, name, seed, model, data, Path(out))
        for seed in seeds
        for name, row in table.rows.items()
        if not row.same and (seed == seeds[0] or _is_trained(table, row))
    ]


def told(steps: Sequence[AblationStep]) -> list[str]:
    """The plan for bash: `OUT RECIPE BASE RECORDS MODEL DEFENSE [flag …]`, tabs between."""
    return [
        "\t".join(
            [
                str(step.out),
                step.recipe or NOTHING,
                step.base,
                step.records or NOTHING,
                step.model,
                step.defense,
                *step.flags,
            ]
        )
        for step in steps
    ]


def check_trained(steps: Sequence[AblationStep]) -> None:
    """ValueError: a run that is there already was trained with other values than the table says now."""
    for step in steps:
        file = Path(step.model) / "final" / "recipe.yaml"
        if not step.recipe or not file.exists():
            continue
        trained = read_yaml(file)
        for key, value in step.overrides.items():
            found = reduce(
                lambda part, name: part.get(name) if isinstance(part, dict) else None, key.split("."), trained
            )
            if found != value:
                raise ValueError(f"{file}: has {key} {found}, row {step.row} {value}; remove it, or choose another OUT")


def _value(table: Any, name: str) -> Any:
    return table.get(name) if isinstance(table, dict) else None


def _check_row(
    name: str, row: AblationRow, training: Mapping[str, Training], above: Mapping[str, AblationRow], where: str
) -> None:
    if name in above or "/" in name or " " in name:
        raise ValueError(f"{where}: a row's name stands once and is a folder's, without spaces")
    if row.train and row.train not in training:
        raise ValueError(f"{where}: unknown training {row.train!r}; one of {list(training)}")
    for earlier in filter(None, (row.model, row.same)):
        if earlier not in above or above[earlier].same:
            raise ValueError(f"{where}: {earlier!r} is no row of its own above this one")


def _is_trained(table: AblationTable, row: AblationRow) -> bool:
    return bool(row.train) or (bool(row.model) and _is_trained(table, table.rows[row.model]))


def _step(table: AblationTable, name: str, seed: int, model: str, data: str, out: Path) -> AblationStep:
    row = table.rows[name]
    places: dict[str, Any] = {
        "row": name,
        "seed": seed,
        "defense": row.defense,
        "out": out / f"seed-{seed}" / name,
        "base": _checkpoint(table, row.model, seed, model, out),
        "model": _checkpoint(table, name, seed, model, out),
    }
    if not row.train:
        return AblationStep(**places)
    training = table.training[row.train]
    overrides = {**training.set, **row.set, "run.seed": seed}
    return AblationStep(
        **places,
        recipe=training.recipe,
        records=str(Path(data) / expanded_path(training.data)),
        overrides=overrides,
    )


def _checkpoint(table: AblationTable, name: str, seed: int, model: str, out: Path) -> str:
    """What a row gives; "" is the model of the command line."""
    if not name:
        return model
    row = table.rows[name]
    return str(out / f"seed-{seed}" / name / "run") if row.train else _checkpoint(table, row.model, seed, model, out)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
