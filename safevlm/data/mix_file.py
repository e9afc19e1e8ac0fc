"""The YAML of a mix (`safevlm/recipes/mix_safevlm.yaml` shows all of it) → one checked, frozen table.

taxonomy: FILE                  categories, levels, policy; none: the default ones
root: DIR                       source paths start here; like all paths, from where the command runs
seed: 42
short: error | allow            fewer rows than asked for
missing: error | allow          a source that is not on the disk (also per source)
images: reference | copy      leave image files where they are, or copy them into the mix
sources: {NAME: {kind, path, split, …}}
held_out: {NAME: {kind, path, split, …}}     never in training: compared by content
labels: {PATTERN: {category, level} | drop | unlabelled}       {…, relabel: true}: also over labels that rows carry
relabel: false | true           the same for every rule
answers: {LEVEL or CATEGORY/LEVEL: [TEXT, …]}
counts: {CATEGORY: N | all}     the pool that both stages draw from; a category that is not named: all
stages: {stage1: {clean: 3000}, stage2: {}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from safevlm.data.labels import UNLABELLED, LabelTable, read_labels
from safevlm.data.sources import source_of
from safevlm.data.sources.row import Rule, SourceSpec
from safevlm.files import FileError, check_template, read_yaml
from safevlm.paths import expanded_path
from safevlm.taxonomy import CLEAN, DEFAULT, Taxonomy, read_taxonomy


@dataclass(frozen=True)
class MixStage:
    """A record file that a mix writes, `NAME.jsonl`, and what it holds unless the YAML says otherwise."""

    name: str
    counts: Mapping[str, int]
    """How many of each category; those that are not named: all."""
    takes_unanswered: bool
    """Records without an answer are in it; they train the head and no words."""


STAGES = {
    stage.name: stage
    for stage in (MixStage("stage1", {CLEAN: 3_000}, takes_unanswered=True), MixStage("stage2", {}, False))
}
"""As published: stage 1 gets all risky records and 3,000 clean ones, stage 2 all (methods §1.5)."""
KEYS = (
    "taxonomy",
    "root",
    "seed",
    "short",
    "missing",
    "images",
    "sources",
    "held_out",
    "labels",
    "relabel",
    "answers",
    "counts",
    "stages",
)
ALL = "all"
ImageRule = Literal["reference", "copy"]
Counts = Mapping[str, int | None]
"""How many of each category; None: all."""

PATHS = ("path", "split_file")
LISTS = ("question", "subsets")
IMAGES_BEFORE = "pictures"
"""The key `images` as files of an earlier version have it."""
RULES = ("missing", "missing_images", "unusable", "partial", "head_only")
CHOICES = {**{name: get_args(Rule) for name in RULES}, "answers": ("source", "table")}
NUMBERS = ("limit", "split_seed")
OPTIONS = "options"


class MixError(ValueError):
    """A mix that cannot be made; the message names file and key, or the source."""


@dataclass(frozen=True)
class Mix:
    file: Path
    taxonomy: Taxonomy
    policy: dict[str, Any] | None
    seed: int
    sources: tuple[SourceSpec, ...]
    held_out: tuple[SourceSpec, ...]
    labels: LabelTable
    answers: Mapping[str, Sequence[str]]
    counts: Counts
    stages: Mapping[str, Counts]
    short: Rule
    images: ImageRule


def read_mix(file: Path, splits: Path, seed: int | None = None, root: Path | None = None) -> Mix:
    """A mix file, checked. `splits`: where split files go that the YAML does not place; `seed`, `root` override it."""
    table = _yaml(file)
    unknown = sorted(map(str, set(table) - {*KEYS, IMAGES_BEFORE}))
    if unknown:
        raise MixError(f"{file}: unknown key {unknown}; one of {list(KEYS)}")
    for key in ("root", "taxonomy"):
        if table.get(key) is not None and not isinstance(table[key], str):
            raise MixError(f"{file}: {key}: {table[key]!r} is not a text")
    own = expanded_path(table["taxonomy"], f"{file}: taxonomy") if table.get("taxonomy") else None
    taxonomy, policy = read_taxonomy(own) if own else (DEFAULT, None)
    missing = _choice(table.get("missing", "error"), get_args(Rule), f"{file}: missing")
    place = _Place(file, root or expanded_path(table.get("root") or ".", f"{file}: root"), splits, missing)
    sources = _specs(place, "sources", table)
    if not sources:
        raise MixError(f"{file}: sources: none; a mix needs at least one")
    held_out = _specs(place, "held_out", table)
    twice = {spec.name for spec in sources} & {spec.name for spec in held_out}
    if twice:
        raise MixError(f"{file}: {sorted(twice)}: in sources and in held_out; give each its own name")
    relabel = _choice(table.get("relabel", False), (False, True), f"{file}: relabel")
    return Mix(
        file=file,
        taxonomy=taxonomy,
        policy=policy,
        seed=_number(table.get("seed", 42) if seed is None else seed, f"{file}: seed"),
        sources=sources,
        held_out=held_out,
        labels=read_labels(_table(table, "labels", str(file)), taxonomy, str(file), relabel=relabel),
        answers=_answers(_table(table, "answers", str(file)), taxonomy, file),
        counts=_counts(_table(table, "counts", str(file)), taxonomy, f"{file}: counts"),
        stages=_stages(table, taxonomy, file),
        short=_choice(table.get("short", "error"), get_args(Rule), f"{file}: short"),
        images=_choice(
            table.get("images", table.get(IMAGES_BEFORE, "reference")), get_args(ImageRule), f"{file}: images"
        ),
    )


@dataclass(frozen=True)
class _Place:
    """What the entries of a file share."""

    file: Path
    root: Path
    splits: Path
    missing: Rule


def _specs(place: _Place, section: str, table: Mapping[str, Any]) -> tuple[SourceSpec, ...]:
    entries = _table(table, section, str(place.file))
    return tuple(_spec(place, str(name), entry, f"{place.file}: {section}.{name}") for name, entry in entries.items())


def _spec(place: _Place, name: str, entry: Any, where: str) -> SourceSpec:
    known = [field.name for field in fields(SourceSpec) if field.name not in ("name", "on_broken")]
    if not isinstance(entry, dict) or not {"kind", "path"} <= set(entry) or set(entry) - set(known):
        raise MixError(f"{where}: needs `kind` and `path`, and may have {known}; not {entry!r}")
    if "/" in name:
        raise MixError(f"{where}: a source's name must not hold '/', which parts words in `labels`")
    source_of(_value("kind", entry["kind"], f"{where}.kind"), where)
    values = {key: _value(key, value, f"{where}.{key}") for key, value in entry.items()}
    values["path"] = place.root / values["path"]
    values.setdefault("missing", place.missing)
    values.setdefault("split_file", place.splits / f"{entry['kind']}_split.json")
    return SourceSpec(name=name, **values)


def _value(key: str, value: Any, where: str) -> Any:
    if key in CHOICES:
        return _choice(value, CHOICES[key], where)
    if key in NUMBERS:
        return _number(value, where)
    if key == OPTIONS:
        return _table({key: value}, key, where)
    if key in LISTS:
        if not isinstance(value, str | list):
            raise MixError(f"{where}: {value!r} is not a text or a list of texts")
        return tuple(map(str, [value] if isinstance(value, str) else value))
    if not isinstance(value, str):
        raise MixError(f"{where}: {value!r} is not a text")
    ready = expanded_path(value, where)
    return ready if key in PATHS else str(ready) if ready != Path(value) else value


def _stages(table: Mapping[str, Any], taxonomy: Taxonomy, file: Path) -> dict[str, Counts]:
    published = {stage.name: stage.counts for stage in STAGES.values()}
    stages = _table(table, "stages", str(file)) if "stages" in table else published
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or not stages:
        raise MixError(f"{file}: stages: {unknown or 'none'}; one or both of {list(STAGES)}")
    return {
        name: _counts(_table(stages, name, f"{file}: stages"), taxonomy, f"{file}: stages.{name}") for name in stages
    }


def _counts(table: Mapping[str, Any], taxonomy: Taxonomy, where: str) -> dict[str, int | None]:
    known = [*taxonomy.category_names, UNLABELLED]
    unknown = sorted(set(map(str, table)) - set(known))
    if unknown:
        raise MixError(f"{where}: unknown category {unknown}; one of {known}")
    return {name: None if count == ALL else _number(count, f"{where}.{name}") for name, count in table.items()}


def _answers(table: Mapping[str, Any], taxonomy: Taxonomy, file: Path) -> dict[str, tuple[str, ...]]:
    for name, wordings in table.items():
        where = f"{file}: answers.{name}"
        category, _, level = str(name).rpartition("/")
        if level not in taxonomy.level_names or category not in ("", *taxonomy.category_names):
            raise MixError(f"{where}: not LEVEL or CATEGORY/LEVEL of {taxonomy.level_names}, {taxonomy.category_names}")
        if not isinstance(wordings, list) or not wordings or not all(isinstance(one, str) for one in wordings):
            raise MixError(f"{where}: must be a list of texts, not {wordings!r}")
        try:
            for one in wordings:
                check_template(one, ["topic"])
        except ValueError as error:
            raise MixError(f"{where}: {error}") from error
    return {str(name): tuple(wordings) for name, wordings in table.items()}


def _yaml(file: Path) -> dict[str, Any]:
    try:
        table = read_yaml(file)
    except FileError as error:
        raise MixError(str(error)) from error
    if not isinstance(table, dict):
        raise MixError(f"{file}: not a mix; it needs a table with `sources` and `labels`")
    return table


def _table(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = table.get(key)
    if value is not None and not isinstance(value, dict):
        raise MixError(f"{where}: {key}: {value!r} is not a table")
    return value or {}


def _choice(value: Any, choices: Sequence[object], where: str) -> Any:
    if value not in choices:
        raise MixError(f"{where}: unknown {value!r}; one of {list(choices)}")
    return value


def _number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MixError(f"{where}: {value!r} is not a count; a whole number from 0 on")
    return value
